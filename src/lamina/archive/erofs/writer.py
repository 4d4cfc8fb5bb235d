"""Writing an index: inodes in the order of the tree, each directory's together.

One pass from the top, a directory at a time: the inodes of all that is in it are laid down, and
then its entries, which need their numbers. What lies further behind is put in at the end: a
directory's first block, the links of files with several names. The same tree gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.archive.erofs import format as f
from lamina.archive.erofs.attributes import Shared, encode
from lamina.archive.erofs.node import HOLE_CHUNK, NO_NID, Chunks, Directory, Node
from lamina.errors import LayerUnsupported

_EXTENDED_PLAIN = f.EXTENDED | f.PLAIN << 1
_EXTENDED_INLINE = f.EXTENDED | f.INLINE << 1
_EXTENDED_CHUNKED = f.EXTENDED | f.CHUNKED << 1
_TYPES = tuple(f.FILE_TYPES.get(number, 0) for number in range(16))
_SECOND = 1_000_000_000
_TYPE_BITS = 0o170000
_REGULAR = stat.S_IFREG
_pack = f.INODE.pack
_NLINK_OFFSET = 44
_DATA_OFFSET = 16
_SIZE_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Device:
    """A file that an index refers to for data."""

    tag: bytes
    """At most 64 bytes that say which file it is."""
    blocks: int
    """Its length in blocks of 512 bytes."""


@dataclass(frozen=True, slots=True)
class Written:
    """What an index came to."""

    inodes: int
    size: int
    """Bytes of the regular files, a hard-linked one once."""
    index_size: int
    """Bytes of the index itself."""


def write_index(
    root: Directory, out: int, devices: Sequence[Device], identity: str, beside: int = 0
) -> Written:
    """Write the index of a tree to ``out``, an empty file, at its position.

    ``identity`` is what the uuid comes from (a DiffID, a ChainID). Data of nodes are blocks of the
    devices as if those lay one behind the other; ``beside`` is the number there of the first block
    of the file beside. Raises LayerUnsupported for what the format can't hold, OSError.
    """
    writer = _Writer(root, devices, beside)
    image = writer.image(identity)
    view = memoryview(image)
    while view:
        view = view[os.write(out, view) :]
    return Written(writer.count, writer.size, len(image))


class _Writer:
    def __init__(self, root: Directory, devices: Sequence[Device], beside: int) -> None:
        if len(devices) > f.DEVICES_MAX:
            raise LayerUnsupported("erofs", f"{len(devices)} devices")
        if f.DEVICE_BASE + sum(device.blocks for device in devices) > f.BLOCKS_MAX:
            raise LayerUnsupported("erofs", "more than 2 TiB of data")
        self.devices = devices
        self.count = 0
        self.size = 0
        self._meta = bytearray(f.DEVICE_TABLE + f.DEVICE.size * len(devices))
        self._blocks = bytearray()
        self._shared = Shared()
        self._late: list[tuple[int, int]] = []  # position of an inode, its first block
        self._linked: dict[int, Node] = {}
        self._chunked = False
        self._beside = f.DEVICE_BASE + beside
        self.root_nid = self._inode(root)
        self._pending = [root]
        while self._pending:
            self._fill(self._pending.pop())

    # -- inodes

    def _inode(self, node: Node) -> int:
        """Lay down an inode and what follows it; its number."""
        mode = node.mode
        data = node.data
        if node.xattrs or mode & _TYPE_BITS != _REGULAR or type(data) is not int:
            return self._odd_inode(node, mode & _TYPE_BITS)
        # Most are plain files: spared the calls.
        size = node.size
        if size:
            data = f.DEVICE_BASE + data if data >= 0 else self._beside + ~data
            self.size += size
        else:
            data = 0
        self.count = count = self.count + 1
        meta = self._meta
        node.nid = nid = len(meta) >> f.SLOT_BITS
        node.nlink = 1
        seconds, nanoseconds = divmod(node.mtime_ns, _SECOND)
        meta += _pack(
            _EXTENDED_PLAIN,
            0,
            mode,
            0,
            size,
            data,
            count,
            node.uid,
            node.gid,
            seconds,
            nanoseconds,
            1,
        )
        return nid

    def _odd_inode(self, node: Node, kind: int) -> int:
        """As :meth:`_inode`, for what is no plain file or has attributes."""
        count, behind = encode(node.xattrs, self._shared) if node.xattrs else (0, b"")
        data = node.data
        if isinstance(node, Directory):
            names = sorted([b".", b"..", *node.children])
            ends, size, tail = _cut(names)
            inline = self._aligned(64 + len(behind), tail)
            nid = self._put(
                node,
                _EXTENDED_INLINE if inline else _EXTENDED_PLAIN,
                count,
                size,
                0,
                behind + bytes(tail if inline else 0),
            )
            node.layout = (names, ends, 64 + len(behind) if inline else 0)
            return nid
        if isinstance(data, Chunks):
            self._chunked = True
            table = b"".join(self._address(block).to_bytes(4, "little") for block in data.blocks)
            form = data.bits - f.BLOCK_BITS
            return self._put(node, _EXTENDED_CHUNKED, count, node.size, form, behind + table)
        if isinstance(data, bytes):
            return self._symlink(node, count, behind, data)
        if kind == stat.S_IFREG:
            data = self._address(data) if node.size else 0
        return self._put(node, _EXTENDED_PLAIN, count, node.size, data, behind)

    def _symlink(self, node: Node, count: int, behind: bytes, target: bytes) -> int:
        # Older kernels want the whole of it, attributes too, in one block.
        whole = 64 + len(behind) + len(target)
        if whole < f.BLOCK:
            self._aligned(0, whole)
            behind += target
            return self._put(node, _EXTENDED_INLINE, count, len(target), 0, behind)
        nid = self._put(node, _EXTENDED_PLAIN, count, len(target), 0, behind)
        self._in_blocks(nid, target)
        return nid

    def _put(self, node: Node, form: int, count: int, size: int, data: int, behind: bytes) -> int:
        meta = self._meta
        position = len(meta)
        seconds, nanoseconds = divmod(node.mtime_ns, _SECOND)
        self.count += 1
        if node.size:
            self.size += size
        node.nid = nid = position >> f.SLOT_BITS
        node.nlink = 1
        meta += f.INODE.pack(
            form,
            count,
            node.mode,
            0,
            size,
            data,
            self.count,
            node.uid,
            node.gid,
            seconds,
            nanoseconds,
            1,
        )
        if behind:
            meta += behind
            meta += bytes(-len(meta) & 31)
        return nid

    def _aligned(self, before: int, tail: int) -> bool:
        """Go on to where ``tail`` bytes, ``before`` bytes on, lie in one block, if possible."""
        if tail == f.BLOCK:  # whether a whole block can be a tail is said nowhere
            return False
        start = len(self._meta) + before
        over = start % f.BLOCK + tail - f.BLOCK
        if over > 0:
            skip = (-start % f.BLOCK + 31) & ~31
            if (start + skip) % f.BLOCK + tail > f.BLOCK:
                return False
            self._meta += bytes(skip)
        return True

    def _address(self, block: int) -> int:
        """A block among the devices, or beside, as an address."""
        if block == HOLE_CHUNK:
            return f.HOLE
        return f.DEVICE_BASE + block if block >= 0 else self._beside + ~block

    # -- directories

    def _fill(self, directory: Directory) -> None:
        """Lay down the inodes in a directory, and its entries."""
        assert directory.layout is not None
        names, ends, inline = directory.layout
        children = directory.children
        assert directory.parent is not None
        special: dict[bytes, Node] = {b".": directory, b"..": directory.parent}
        below: list[Directory] = []
        rows = []
        for name in names:
            node = children.get(name) or special[name]
            nid = node.nid
            if nid == NO_NID:
                nid = self._inode(node)
                if isinstance(node, Directory):
                    below.append(node)
            elif name not in special:
                node.nlink += 1
                self._linked[nid] = node
            rows.append((name, nid, _TYPES[node.mode >> 12]))
        directory.nlink = 2 + len(below)
        self._linked[directory.nid] = directory
        self._pending.extend(reversed(below))
        directory.layout = None
        self._entries(directory.nid, rows, ends, inline)

    def _entries(
        self, nid: int, rows: list[tuple[bytes, int, int]], ends: list[int], inline: int
    ) -> None:
        pack = f.DIRENT.pack
        whole = []
        first = 0
        for end in ends:
            block = rows[first:end]
            offset = 12 * len(block)
            entries = []
            for name, number, kind in block:
                entries.append(pack(number, offset, kind))
                offset += len(name)
            entries += [name for name, _, _ in block]
            whole.append(b"".join(entries))
            first = end
        if inline:
            tail = whole.pop()
            start = (nid << f.SLOT_BITS) + inline
            self._meta[start : start + len(tail)] = tail
        if whole:
            self._in_blocks(nid, b"".join(block.ljust(f.BLOCK, b"\0") for block in whole))

    def _in_blocks(self, nid: int, data: bytes) -> None:
        """Put an inode's data into blocks of their own."""
        self._late.append((nid << f.SLOT_BITS, len(self._blocks) >> f.BLOCK_BITS))
        self._blocks += data
        self._blocks += bytes(-len(data) % f.BLOCK)

    # -- the whole

    def image(self, identity: str) -> bytearray:
        """All bytes of the index."""
        meta = self._meta
        for nid, node in self._linked.items():
            start = (nid << f.SLOT_BITS) + _NLINK_OFFSET
            meta[start : start + 4] = node.nlink.to_bytes(4, "little")
        meta += bytes(-len(meta) % f.BLOCK)
        first = len(meta) >> f.BLOCK_BITS
        for position, block in self._late:
            start = position + _DATA_OFFSET
            meta[start : start + 4] = (first + block).to_bytes(4, "little")
        meta += self._blocks
        self._blocks.clear()
        shared = 0
        if len(self._shared.area) > 4:
            shared = len(meta) >> f.BLOCK_BITS
            meta += self._shared.area
            meta += bytes(-len(meta) % f.BLOCK)
        if len(meta) >> f.BLOCK_BITS > f.DEVICE_BASE:
            raise LayerUnsupported("erofs", "an index of more than 8 GiB")
        self._device_table()
        self._superblock(identity, shared)
        return meta

    def _device_table(self) -> None:
        start = f.DEVICE_BASE
        for number, device in enumerate(self.devices):
            f.DEVICE.pack_into(
                self._meta,
                f.DEVICE_TABLE + number * f.DEVICE.size,
                device.tag,
                device.blocks,
                start,
            )
            start += device.blocks

    def _superblock(self, identity: str, shared: int) -> None:
        features = f.INCOMPAT_DEVICES if self.devices else 0
        superblock = f.Superblock(
            magic=f.MAGIC,
            checksum=0,
            compatible=f.COMPAT_CHECKSUM | f.COMPAT_MTIME,
            block_bits=f.BLOCK_BITS,
            extra_slots=0,
            root_nid=self.root_nid,
            inodes=self.count,
            build_time=0,
            build_nanoseconds=0,
            blocks=len(self._meta) >> f.BLOCK_BITS,
            meta_block=0,
            xattr_block=shared,
            uuid=uuid_of(identity),
            volume_name=f.VOLUME_NAME,
            incompatible=features | (f.INCOMPAT_CHUNKED if self._chunked else 0),
            compression=0,
            devices=len(self.devices),
            device_slot=f.DEVICE_TABLE // f.DEVICE.size,
            directory_bits=0,
            prefixes=0,
            prefix_start=0,
            packed_nid=0,
            filter=0,
        )
        f.SUPER.pack_into(self._meta, f.SUPER_OFFSET, *superblock)
        block = self._meta[f.SUPER_OFFSET : f.SUPER_OFFSET + f.BLOCK]
        position = f.SUPER_OFFSET + f.CHECKSUM_OFFSET
        self._meta[position : position + 4] = f.checksum(block).to_bytes(4, "little")


def uuid_of(identity: str) -> bytes:
    """The uuid of an index: 122 bits of a hash of what it is the index of (RFC 9562, version 8)."""
    raw = bytearray(hashlib.sha256(b"lamina index\n" + identity.encode()).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def _cut(names: list[bytes]) -> tuple[list[int], int, int]:
    """How sorted names fill blocks: where each block ends, bytes in all, bytes in the last one."""
    ends = []
    room = f.BLOCK
    for number, name in enumerate(names):
        need = 12 + len(name)
        if need > room:
            ends.append(number)
            room = f.BLOCK
        room -= need
    ends.append(len(names))
    tail = f.BLOCK - room
    return ends, (len(ends) - 1) * f.BLOCK + tail, tail
