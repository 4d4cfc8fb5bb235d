"""The contents of files: where the bytes lie in the index and its devices, and reading them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from struct import Struct

from lamina.archive.erofs import format as f
from lamina.archive.erofs.inode import DeviceSlot, Extent, Inode
from lamina.errors import InvalidArchive

_U32 = Struct("<I")
_PIECE = 1 << 20


class Contents:
    """The part of an image that knows where file data are."""

    def __init__(self, data: memoryview, bits: int, fds: Sequence[int]) -> None:
        self._data = data
        self._fds = fds
        self._bits = bits
        self.block = 1 << bits
        """Bytes of a block."""
        self.devices: tuple[DeviceSlot, ...] = ()
        """The device table."""

    def _at(self, position: int, size: int) -> memoryview:
        """Bytes of the index."""
        if position < 0 or position + size > len(self._data):
            raise InvalidArchive("an EROFS index that refers beyond its end")
        return self._data[position : position + size]

    def extents(self, inode: Inode) -> Iterator[Extent]:
        """Where the bytes of a regular file lie, in order, holes included."""
        if not inode.is_file:
            raise InvalidArchive("an EROFS inode that is no regular file")
        if inode.layout == f.CHUNKED:
            yield from self._chunks(inode)
            return
        whole = inode.size
        if inode.layout == f.INLINE:
            whole = max(0, inode.size - 1 >> self._bits << self._bits)
        if whole:
            yield self._placed(0, whole, inode.data)
        if whole < inode.size:
            self._at(inode.behind, inode.size - whole)
            yield Extent(whole, inode.size - whole, -1, inode.behind)

    def chunk_map(self, inode: Inode) -> tuple[int, memoryview, int]:
        """Of a file cut into chunks: bits of a chunk's size, the map, and bytes of each entry.

        An entry ends with the chunk's first block; one of 8 bytes has the device before it.
        """
        form = inode.data & 0xFFFF
        if form & ~(f.CHUNK_BITS_MASK | f.CHUNK_INDEXES):
            raise InvalidArchive("an EROFS chunk map of an unknown kind")
        bits = self._bits + (form & f.CHUNK_BITS_MASK)
        unit = 8 if form & f.CHUNK_INDEXES else 4
        start = (inode.behind + unit - 1) & -unit
        count = inode.size + (1 << bits) - 1 >> bits
        return bits, self._at(start, count * unit), unit

    def _chunks(self, inode: Inode) -> Iterator[Extent]:
        bits, table, unit = self.chunk_map(inode)
        offset = 0
        for at in range(0, len(table), unit):
            length = min(1 << bits, inode.size - offset)
            (block,) = _U32.unpack_from(table, at + unit - 4)
            device = int.from_bytes(table[at + 2 : at + 4], "little") if unit == 8 else 0
            if block == f.HOLE:
                yield Extent(offset, length, None, 0)
            elif device > len(self.devices):
                raise InvalidArchive("an EROFS chunk on a device that is not there")
            elif device:
                yield self._bounded(offset, length, device - 1, block)
            else:
                yield self._placed(offset, length, block)
            offset += length

    def _placed(self, offset: int, length: int, block: int) -> Extent:
        """The extent whose first block has an address of the common space."""
        for number, slot in enumerate(self.devices):
            if slot.start <= block < slot.start + slot.blocks:
                return self._bounded(offset, length, number, block - slot.start)
        position = block << self._bits
        self._at(position, length)
        return Extent(offset, length, -1, position)

    def _bounded(self, offset: int, length: int, device: int, block: int) -> Extent:
        if block + (length + self.block - 1 >> self._bits) > self.devices[device].blocks:
            raise InvalidArchive("EROFS data beyond the end of a device")
        return Extent(offset, length, device, block << self._bits)

    def read(self, inode: Inode, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes of a regular file: ``size`` from ``offset`` on, or fewer at its end."""
        end = inode.size if size is None else min(inode.size, offset + size)
        return b"".join(map(bytes, self.pieces(inode, offset, end)))

    def pieces(
        self, inode: Inode, start: int = 0, end: int | None = None
    ) -> Iterator[bytes | memoryview]:
        """A regular file's bytes from ``start`` to ``end``, in pieces of 1 MiB at most."""
        stop = inode.size if end is None else min(end, inode.size)
        for extent in self.extents(inode):
            begin = max(start, extent.offset)
            last = min(stop, extent.offset + extent.length)
            if extent.offset >= stop:
                return
            while begin < last:
                length = min(_PIECE, last - begin)
                yield self._piece(extent, begin - extent.offset, length)
                begin += length

    def _piece(self, extent: Extent, skip: int, length: int) -> bytes | memoryview:
        if extent.source is None:
            return bytes(length)
        position = extent.position + skip
        if extent.source < 0:
            return self._at(position, length)
        if extent.source >= len(self._fds):
            raise ValueError("the device that holds this file's content is not open")
        data = os.pread(self._fds[extent.source], length, position)
        while len(data) < length:
            more = os.pread(self._fds[extent.source], length - len(data), position + len(data))
            if not more:
                raise InvalidArchive("a device of an EROFS index is shorter than it should be")
            data += more
        return data
