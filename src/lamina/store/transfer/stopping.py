"""Ending what several threads do, when one of them has failed or the caller wants no more."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

from lamina.kernel.lock import try_lock, unlock

T = TypeVar("T")

_PAUSE = 0.05
"""Seconds between two looks at a lock."""

_STEP = 0.2
"""Seconds between two reports."""


class Stopped(Exception):
    """Another part of the same work has failed; its error is the one to be told."""


class Stop:
    """A flag that threads look at where they may wait long."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Let every :meth:`check` from now on raise."""
        self._event.set()

    def check(self) -> None:
        """Raise :class:`Stopped` if the work is to end."""
        if self._event.is_set():
            raise Stopped


def results(
    futures: Sequence[Future[T]], *, report: Callable[[], None], end: Callable[[], None]
) -> list[T]:
    """What came of all futures, in order; ``report`` is called now and then meanwhile.

    When one fails, or ``report`` raises, or a signal comes, ``end`` is called, which is to end the
    others, and the error is raised: of several, one that is not :class:`Stopped`.
    """
    pending = set(futures)
    try:
        while pending:
            done, pending = wait(pending, timeout=_STEP, return_when=FIRST_EXCEPTION)
            report()
            if any(future.exception() for future in done):
                break
        errors = [error for f in futures if f.done() and (error := f.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])
    except BaseException:
        end()
        raise
    return [future.result() for future in futures]


@contextmanager
def locked(path: str, stop: Stop) -> Iterator[None]:
    """Hold a lock file, which is deleted after the block; waits for whoever has it."""
    while (lock := try_lock(path)) is None:
        stop.check()
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        _release(path, lock)


@contextmanager
def locked_now(path: str) -> Iterator[bool]:
    """Hold a lock file as :func:`locked`, if nobody has it; yields whether that is so."""
    lock = try_lock(path)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            _release(path, lock)


def _release(path: str, lock: int) -> None:
    try:
        os.unlink(path)
    finally:
        unlock(lock)


class Watched(io.RawIOBase):
    """A stream that ends when the work does, and tells what was read.

    Of one that goes on after ``limit`` bytes one byte more is given, so that it is found out.
    """

    def __init__(
        self, stream: BinaryIO, limit: int, stop: Stop, progress: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._stream = stream
        self._left = limit + 1
        self._stop = stop
        self._progress = progress

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes."""
        self._stop.check()
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        if data:
            self._progress(len(data))
        return data

    def close(self) -> None:
        """Close the stream too."""
        if not self.closed:
            super().close()
            self._stream.close()
