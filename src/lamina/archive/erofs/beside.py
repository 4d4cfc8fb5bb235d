"""What of a layer's contents is no run of blocks in its tar: sparse files, copies of lower files.

A sparse file is cut into chunks of one size, a power of two. A chunk without data is a hole. One
with data all over, of a piece of the payload that lies on a block, is blocks of the tar. What is
left, chunks with data and holes or with data off the blocks, is copied to a file *beside* the
tar, which is one more device and sparse itself. The size of chunks is chosen so that the map and
the copies together are smallest.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lamina.archive.erofs.format import BLOCK, BLOCK_BITS
from lamina.archive.erofs.node import HOLE_CHUNK, Chunks
from lamina.errors import LayerUnsupported

_BITS_MAX = 30
"""Of a chunk that may be copied: 1 GiB."""
_BITS_LIMIT = 40
"""Of any: the format ends there."""
_RESERVED_MAX = 64 << 30
"""Bytes of the file beside for one sparse file, holes included."""
_CHUNKS_MAX = 1 << 22
_SPARSE_ENOUGH = 4096

Segments = tuple[tuple[int, int], ...]
Content = Callable[[], Iterable[memoryview]]


class Beside:
    """The file beside, made when something is put into it. Close it at the end."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1
        self.blocks = 0
        """How long it is, holes included."""

    def reserve(self, size: int) -> int:
        """Room for ``size`` bytes, all zeros so far; the first block."""
        start = self.blocks
        self.blocks += size + BLOCK - 1 >> BLOCK_BITS
        self._open()
        return start

    def write(self, data: memoryview | bytes, block: int, offset: int = 0) -> None:
        """Put ``data`` at ``offset`` bytes behind the start of a block."""
        position = (block << BLOCK_BITS) + offset
        view = memoryview(data)
        while view:
            written = os.pwrite(self._open(), view, position)
            position += written
            view = view[written:]

    def copy(self, pieces: Iterable[bytes | memoryview], size: int) -> int:
        """Put a whole file there, zeros as holes; its first block."""
        start = self.reserve(size)
        offset = 0
        for piece in pieces:
            for at in range(0, len(piece), _SPARSE_ENOUGH):
                part = bytes(piece[at : at + _SPARSE_ENOUGH])
                if part.count(0) != len(part):
                    self.write(part, start, offset + at)
            offset += len(piece)
        return start

    def close(self) -> None:
        """Give the file its length, let nobody write it, and close it."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.ftruncate(fd, self.blocks << BLOCK_BITS)
                os.fchmod(fd, 0o444)
            finally:
                os.close(fd)

    def discard(self) -> None:
        """Close it as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        if self._fd < 0:
            if self._path is None:
                raise LayerUnsupported("erofs", "contents that are no run of blocks in the tar")
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o644)
        return self._fd


def place(
    segments: Segments, size: int, payload: int, content: Content, beside: Beside
) -> int | Chunks:
    """Where a sparse file of ``size`` bytes lies: ``data`` of its inode.

    ``segments`` are its data, whose bytes begin at ``payload`` in the tar and are also what
    ``content`` gives; that is asked for only if something has to be copied.
    """
    segments = _joined(segments)
    if payload % BLOCK == 0 and segments == ((0, size),):
        return payload >> BLOCK_BITS
    bits = _chunk_bits(segments, size, payload)
    count = (size - 1 >> bits) + 1
    if count > _CHUNKS_MAX:
        raise LayerUnsupported("erofs", f"a sparse file of {size} bytes")
    blocks = array("q", [HOLE_CHUNK]) * count
    for first, end, block in _covered(segments, size, payload, bits):
        step = 1 << (bits - BLOCK_BITS)
        stop = block + (end - first) * step
        blocks[first:end] = array("q", range(block, stop, step))
    partial = _partial(segments, size, payload, bits)
    for chunk in partial:
        length = min(1 << bits, size - (chunk << bits))
        blocks[chunk] = ~beside.reserve(length)
    if partial:
        _copy(segments, content, blocks, partial, bits, beside)
    return Chunks(bits, blocks)


def _joined(segments: Segments) -> Segments:
    """The same with pieces that touch made one."""
    joined: list[tuple[int, int]] = []
    for offset, length in segments:
        if joined and sum(joined[-1]) == offset:
            joined[-1] = joined[-1][0], joined[-1][1] + length
        else:
            joined.append((offset, length))
    return tuple(joined)


def _chunk_bits(segments: Segments, size: int, payload: int) -> int:
    """The size of chunks with which the map and the copies are smallest."""
    if not segments:
        return min(_BITS_LIMIT, max(BLOCK_BITS, (size - 1).bit_length()))
    best = BLOCK_BITS
    least = -1
    for bits in range(BLOCK_BITS, _BITS_MAX + 1):
        copied, partial = _copied(segments, size, payload, bits)
        if partial << bits > _RESERVED_MAX and least >= 0:
            break
        cost = 4 * ((size - 1 >> bits) + 1) + copied
        if least < 0 or cost < least:
            least, best = cost, bits
        if size <= 1 << bits:
            break
    return best


def _whole(offset: int, length: int, at: int, size: int, bits: int) -> tuple[int, int]:
    """Chunks (first, end) that a piece of data covers, if it lies on blocks of the tar."""
    first = (offset + (1 << bits) - 1) >> bits
    end = offset + length
    last = first if (at + (first << bits) - offset) % BLOCK else end >> bits
    if end == size and not (at + (first << bits) - offset) % BLOCK:
        last = (size - 1 >> bits) + 1
    return first, max(first, last)


def _covered(
    segments: Segments, size: int, payload: int, bits: int
) -> Iterator[tuple[int, int, int]]:
    """Each run of chunks that are blocks of the tar: first, end, and the block of the first."""
    at = payload
    for offset, length in segments:
        first, end = _whole(offset, length, at, size, bits)
        if end > first:
            yield first, end, (at + (first << bits) - offset) >> BLOCK_BITS
        at += length


def _partial(segments: Segments, size: int, payload: int, bits: int) -> list[int]:
    """Chunks that have data and are no blocks of the tar."""
    found: dict[int, None] = {}
    at = payload
    for offset, length in segments:
        first, end = _whole(offset, length, at, size, bits)
        start, stop = offset >> bits, (offset + length - 1 >> bits) + 1
        if end > first:
            found.update(dict.fromkeys(range(start, first)))
            found.update(dict.fromkeys(range(end, stop)))
        else:
            found.update(dict.fromkeys(range(start, stop)))
        at += length
    return list(found)


def _copied(segments: Segments, size: int, payload: int, bits: int) -> tuple[int, int]:
    """How many bytes of data are in partial chunks, and at most how many chunks those are."""
    total = partial = 0
    at = payload
    for offset, length in segments:
        first, end = _whole(offset, length, at, size, bits)
        total += length
        partial += (offset + length - 1 >> bits) + 1 - (offset >> bits)
        if end > first:
            total -= min(end << bits, offset + length) - (first << bits)
            partial -= end - first
        at += length
    return total, partial


def _copy(
    segments: Segments,
    content: Content,
    blocks: array[int],
    partial: list[int],
    bits: int,
    beside: Beside,
) -> None:
    """Write to the partial chunks what they have of the payload."""
    wanted = set(partial)
    pieces = iter(segments)
    offset, left = next(pieces)
    for data in content():
        view = data
        while view:
            if not left:
                offset, left = next(pieces)
            chunk = offset >> bits
            here = min(len(view), left, (chunk + 1 << bits) - offset)
            if chunk in wanted:
                beside.write(view[:here], ~blocks[chunk], offset - (chunk << bits))
            view = view[here:]
            offset += here
            left -= here
