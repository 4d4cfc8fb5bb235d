"""A stream in pieces of one size, out of headers and files, without a copy of what files hold."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from mmap import mmap
from typing import Final

PIECE: Final = 1 << 20
"""Bytes of a piece, at most. Only the last is much smaller."""

_ROOM = 1 << 16
"""Less room than this in the buffer is not worth a read(2) of its own."""


class Pieces:
    """Two buffers by turns: while one is handed out, what comes next is put into the other.

    :meth:`put` and :meth:`read_whole` never hand out; after them, :meth:`full` does. A piece is
    valid until the next step of the iterator that gave it.
    """

    def __init__(self) -> None:
        # Anonymous mappings: a small layer pays for the pages that it fills, not for both buffers.
        self._buffer = memoryview(mmap(-1, PIECE))
        self._other = memoryview(mmap(-1, PIECE))
        self._used = 0
        self._full: list[bytes | memoryview] = []

    def put(self, data: bytes) -> None:
        """Append bytes."""
        end = self._used + len(data)
        if end > PIECE:
            self._turn()
            if len(data) > PIECE:
                self._full.append(data)
                return
            end = len(data)
        self._buffer[self._used : end] = data
        self._used = end

    def read_whole(self, fd: int, size: int) -> bool:
        """Append a file of ``size`` bytes in one go; False when there is no room, or not so much.

        Then nothing was appended. Raises OSError.
        """
        end = self._used + size
        if end > PIECE or os.preadv(fd, [self._buffer[self._used : end]], 0) < size:
            return False
        self._used = end
        return True

    def read(self, fd: int, offset: int, length: int) -> Generator[bytes | memoryview, None, int]:
        """Append a range of a file, and hand out on the way; what the file does not have is zeros.

        Returns how many bytes were missing. Raises OSError.
        """
        end = offset + length
        missing = 0
        while offset < end:
            if PIECE - self._used < min(_ROOM, end - offset):
                yield from self.flush()
            target = self._buffer[self._used : min(PIECE, self._used + end - offset)]
            got = os.preadv(fd, [target], offset)
            if got == 0:
                got = len(target)
                target[:] = bytes(got)
                missing += got
            offset += got
            self._used += got
        return missing

    def full(self) -> Iterator[bytes | memoryview]:
        """Hand out the pieces that became full."""
        while self._full:
            yield self._full.pop(0)

    def flush(self) -> Iterator[bytes | memoryview]:
        """Hand out all there is."""
        self._turn()
        return self.full()

    def _turn(self) -> None:
        if self._used:
            piece: bytes | memoryview = self._buffer[: self._used]
            # The buffer to turn to may still wait to be handed out.
            self._full.append(bytes(piece) if self._full else piece)
            if len(self._full) == 1:
                self._buffer, self._other = self._other, self._buffer
            self._used = 0
