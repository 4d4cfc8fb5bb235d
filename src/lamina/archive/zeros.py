"""Holes, found and made by what a file holds: aligned runs that are nothing but zeros.

Where a file system has its holes depends on its block size, on how the file was written and on
what was allocated ahead; runs of :data:`RUN` bytes are the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from lamina.kernel.copy import data_ranges
from lamina.kernel.memory import page_aligned

RUN = 64 << 10
"""Zeros in a row, aligned to this, that are worth a hole. A multiple of tar's block of 512."""

_WRITE = 256 << 10
"""Bytes written at a time. For larger writes the page cache takes memory in larger pieces, such as
are left where nobody was yet: a virtual machine has to ask its host for it, page by page."""

_ZEROS = bytes(RUN)
_WINDOW = 1 << 20  # a multiple of RUN


def write_punched(fd: int, chunks: Iterable[memoryview]) -> None:
    """Write ``chunks`` to an empty file at position 0; aligned runs of zeros are left out."""
    writer = PunchedWriter(fd)
    for chunk in chunks:
        writer.write(chunk)
    writer.finish()


class PunchedWriter:
    """Writes an empty file from position 0 on; aligned runs of zeros are left out.

    Of a run that is in two chunks a part may be left out by itself.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.offset = 0
        """Bytes written, or left out."""

    def write(self, chunk: memoryview) -> None:
        """Write some more; all of it."""
        start = 0  # of what is to be written next, in this chunk
        end = 0
        offset = self.offset
        while end < len(chunk):
            start_of_piece, end = end, min(len(chunk), end + RUN - (offset + end) % RUN)
            if _is_zero(chunk[start_of_piece:end]):
                _write_at(self._fd, chunk[start:start_of_piece], offset + start)
                start = end
        _write_at(self._fd, chunk[start:], offset + start)
        self.offset += len(chunk)

    def finish(self) -> None:
        """Let the file have its length, whatever it ends with."""
        os.ftruncate(self._fd, self.offset)


def data_pieces(fd: int, size: int) -> list[tuple[int, int]]:
    """(offset, length) of what is no run of zeros in the first ``size`` bytes, in order.

    The last run may be shorter. What the file system knows to be a hole is not read. Moves the
    position of ``fd``. Raises OSError.
    """
    pieces: list[tuple[int, int]] = []
    end = 0
    for offset, length in data_ranges(fd, size):
        begin = max(end, offset - offset % RUN)
        end = min(size, offset + length + -(offset + length) % RUN)
        for start, stop in _runs_with_data(fd, begin, end):
            if pieces and sum(pieces[-1]) == start:
                start, _ = pieces.pop()
            pieces.append((start, stop - start))
    return pieces


def _runs_with_data(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run that holds something; ``begin`` is where a run begins."""
    window = memoryview(page_aligned(_WINDOW))
    while begin < end:
        got = os.preadv(fd, [window[: end - begin]], begin)
        for at in range(0, got, RUN):
            piece = window[at : min(at + RUN, got)]
            if not _is_zero(piece):
                yield begin + at, min(begin + at + RUN, end)
        if got < min(len(window), end - begin):  # the file became shorter
            return
        begin += got


def _is_zero(piece: memoryview) -> bool:
    # Most data says so by its first byte; a memoryview compares byte by byte, bytes at once.
    return not piece[0] and piece.tobytes() == _ZEROS[: len(piece)]


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data[:_WRITE], offset)
        data = data[count:]
        offset += count
