"""Writing a file with holes where its content is nothing but zeros."""

from __future__ import annotations

import os
from collections.abc import Iterable

RUN = 64 << 10
"""Zeros in a row, aligned to this, that are worth a hole."""

_ZEROS = bytes(RUN)


def write_punched(fd: int, chunks: Iterable[memoryview]) -> None:
    """Write ``chunks`` to an empty file at position 0; aligned runs of zeros are left out."""
    offset = 0
    for chunk in chunks:
        start = 0  # of what is to be written next, in this chunk
        end = 0
        while end < len(chunk):
            start_of_piece, end = end, min(len(chunk), end + RUN - (offset + end) % RUN)
            if end - start_of_piece == RUN and chunk[start_of_piece:end] == _ZEROS:
                _write_at(fd, chunk[start:start_of_piece], offset + start)
                start = end
        _write_at(fd, chunk[start:], offset + start)
        offset += len(chunk)
    os.ftruncate(fd, offset)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data = data[count:]
        offset += count
