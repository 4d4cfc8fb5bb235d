"""The digest of a file in the making, by a thread that follows its writer."""

from __future__ import annotations

import hashlib
import os
from threading import Thread
from types import TracebackType
from typing import Self

from lamina.archive.compression.channel import Channel
from lamina.errors import InvalidArchive
from lamina.kernel.memory import page_aligned

_PIECE = 4 << 20
"""Bytes hashed at a time: many, as after each the thread waits until the writer's lets it go on."""

_DEPTH = 4
"""How many pieces the writer may be ahead: few enough that what is read back is in memory."""


class FollowingHash:
    """SHA-256 of the file ``fd``, open for reading too, that is written from its start.

    What counts is what the file has, not what its writer was given; reading it back is a fifth of
    the hashing, and spares the writer to hand over buffers. A context manager: ``fd`` has to stay
    open till its end.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = hashlib.sha256()
        self._done = 0
        self._told = 0
        self._buffer = memoryview(page_aligned(_PIECE))
        self._ends: Channel[int] = Channel(_DEPTH)
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._join()

    def wrote(self, end: int) -> None:
        """Say that the first ``end`` bytes are written; waits for a digest far behind."""
        if end - self._told < _PIECE:
            return
        if self._thread is None:
            self._thread = Thread(target=self._follow, name="lamina-hash", daemon=True)
            self._thread.start()
        self._told = end
        self._ends.put(end)

    def hexdigest(self, size: int) -> str:
        """The digest of the whole file, which has ``size`` bytes. To be asked once.

        Raises OSError, and InvalidArchive for a file that is shorter than was said.
        """
        self._join()
        if self._error is not None:
            raise self._error
        self._catch_up(size)
        if self._done != size:
            raise InvalidArchive("became shorter while it was hashed")
        return self._hash.hexdigest()

    def _join(self) -> None:
        if self._thread is not None:
            self._ends.end()
            self._thread.join()

    def _follow(self) -> None:
        try:
            while (end := self._ends.get()) is not None:
                self._catch_up(end)
        except BaseException as error:
            self._error = error
        finally:
            self._ends.close()

    def _catch_up(self, end: int) -> None:
        """Hash up to ``end``, or to a hole that ends the file: not there until that is complete."""
        while self._done < end:
            piece = self._buffer[: min(_PIECE, end - self._done)]
            count = os.preadv(self._fd, [piece], self._done)
            if not count:
                return
            self._hash.update(piece[:count])
            self._done += count
