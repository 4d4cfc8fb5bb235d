"""A stream in pieces of one size, out of headers and files, without a copy of what files hold."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Final

PIECE: Final = 1 << 20
"""Bytes of a piece, at most. Only the last is much smaller."""

_ROOM = 1 << 16
"""Less room than this in the buffer is not worth a read(2) of its own."""


class Pieces:
    """One buffer, filled and handed out again and again.

    Every method gives the pieces that became full on the way; each is valid until the next step.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(PIECE))
        self._used = 0

    def add(self, data: bytes) -> Iterator[bytes | memoryview]:
        """Append bytes."""
        if self._used + len(data) > PIECE:
            yield from self.flush()
            if len(data) > PIECE:
                yield data
                return
        self._buffer[self._used : self._used + len(data)] = data
        self._used += len(data)

    def read(self, fd: int, offset: int, length: int) -> Generator[memoryview, None, int]:
        """Append a range of a file; what the file does not have is zeros.

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

    def flush(self) -> Iterator[memoryview]:
        """Hand out what there is, if anything."""
        if self._used:
            used, self._used = self._used, 0
            yield self._buffer[:used]
