"""Reading an index without mounting it: no privilege, no kernel, and no trust in what it says.

    with open_image(index_path, [tar_path]) as image:
        for path, inode in image.walk():
            ...
        image.read(image.find(b"etc/passwd"), 0, 100)

Every position is checked before it is looked at, directories are in order or refused, and a walk
comes to each directory once; so whatever the bytes are, reading them ends, with an answer or with
InvalidArchive. Only what :mod:`lamina.archive.erofs.writer` writes is read, and the plain and
compact forms that mkfs.erofs(1) writes for uncompressed trees with blocks of any size.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from struct import Struct
from typing import overload

from lamina.archive.erofs import format as f
from lamina.archive.erofs.contents import Contents
from lamina.archive.erofs.inode import DeviceSlot, DirectoryEntry, Inode
from lamina.errors import InvalidArchive

_COMPACT = Struct("<HHHHIIIIHHI")
_U32 = Struct("<I")
_KNOWN_INCOMPAT = f.INCOMPAT_CHUNKED | f.INCOMPAT_DEVICES
_BLOCK_BITS = range(9, 17)
_SYMLINK_MAX = 4096
_LISTED_MAX = 64
"""Directories of one block that an image remembers."""
_TYPE_BITS = 0o170000
_TYPES = frozenset(number << 12 for number in f.FILE_TYPES)


class Image(Contents):
    """An index, and descriptors of its devices: of all, or of none to read no contents. Not closed.

    Raises InvalidArchive at once for what is no index, and later for what is damaged.
    """

    def __init__(self, data: bytes, devices: Sequence[int] = ()) -> None:
        if len(data) < f.SUPER_OFFSET + f.SUPER.size:
            raise InvalidArchive("no EROFS index: too short")
        head = f.Superblock(*f.SUPER.unpack_from(data, f.SUPER_OFFSET))
        if head.magic != f.MAGIC:
            raise InvalidArchive("no EROFS index")
        if head.block_bits not in _BLOCK_BITS or head.extra_slots or head.directory_bits:
            raise InvalidArchive("an EROFS index with blocks of an unknown size")
        if head.incompatible & ~_KNOWN_INCOMPAT or head.compression:
            raise InvalidArchive(f"an EROFS index with unknown features ({head.incompatible:#x})")
        super().__init__(memoryview(data), head.block_bits, devices)
        self._root_nid = head.root_nid
        self._listed: dict[int, dict[bytes, int]] = {}
        self.inodes = head.inodes
        """How many inodes there are, as the superblock says."""
        self._build_time_ns = head.build_time * 1_000_000_000 + head.build_nanoseconds
        self._meta = head.meta_block << self._bits
        self._shared = head.xattr_block << self._bits
        self.uuid = head.uuid
        if head.checksum or head.compatible & f.COMPAT_CHECKSUM:
            self._check(head.checksum)
        self.devices = self._device_table(head.devices, head.device_slot)
        self._check_devices()

    def on(self, devices: Sequence[int]) -> Image:
        """The same index, with descriptors of its devices."""
        other = copy.copy(self)
        other._fds = devices
        other._check_devices()
        return other

    def _check_devices(self) -> None:
        if self._fds and len(self._fds) != len(self.devices):
            raise InvalidArchive(
                f"an EROFS index of {len(self.devices)} devices, not {len(self._fds)}"
            )

    def _check(self, wanted: int) -> None:
        # With blocks up to 1024 bytes the block that the superblock begins, else the first one's
        # rest (erofs_superblock_csum_verify() in the kernel's fs/erofs/super.c).
        length = self.block - f.SUPER_OFFSET if self.block > f.SUPER_OFFSET else self.block
        block = bytearray(self._at(f.SUPER_OFFSET, length))
        block[f.CHECKSUM_OFFSET : f.CHECKSUM_OFFSET + 4] = bytes(4)
        if f.checksum(block) != wanted:
            raise InvalidArchive("an EROFS superblock with a wrong checksum")

    def _device_table(self, count: int, slot: int) -> tuple[DeviceSlot, ...]:
        table = self._at(slot * f.DEVICE.size, count * f.DEVICE.size)
        slots = (DeviceSlot(t.rstrip(b"\0"), b, s) for t, b, s in f.DEVICE.iter_unpack(table))
        return tuple(slots)

    # -- inodes

    @cached_property
    def root(self) -> Inode:
        """The top directory."""
        root = self.inode(self._root_nid)
        if not root.is_directory:
            raise InvalidArchive("an EROFS index whose top is no directory")
        return root

    def inode(self, nid: int) -> Inode:
        """The inode of that number."""
        position = self._meta + (nid << f.SLOT_BITS)
        if position < 0 or position + 32 > len(self._data):
            raise InvalidArchive("an EROFS inode beyond the index's end")
        if self._data[position] & f.EXTENDED:
            if position + 64 > len(self._data):
                raise InvalidArchive("an EROFS inode beyond the index's end")
            form, count, mode, _, size, data, _, uid, gid, seconds, nanoseconds, nlink = (
                f.INODE.unpack_from(self._data, position)
            )
            time = seconds * 1_000_000_000 + nanoseconds
            xattrs_at = position + 64
        else:
            form, count, mode, nlink, size, _, data, _, uid, gid, _ = _COMPACT.unpack_from(
                self._data, position
            )
            time = self._build_time_ns
            xattrs_at = position + 32
        behind = xattrs_at + (8 + 4 * count if count else 0)
        layout = form >> 1
        if mode & _TYPE_BITS not in _TYPES or behind > len(self._data):
            raise InvalidArchive(f"a damaged EROFS inode ({nid})")
        if layout not in (f.PLAIN, f.INLINE, f.CHUNKED) or size >= 1 << 63:
            raise InvalidArchive(f"an EROFS inode of an unknown kind ({nid})")
        return Inode(nid, mode, uid, gid, size, time, nlink, data, layout, xattrs_at, behind)

    def find(self, path: bytes) -> Inode | None:
        """The inode at a clean path (``b""`` is the top), or None; links are not followed."""
        inode = self.root
        for part in path.split(b"/") if path else ():
            nid = self.lookup(inode, part) if inode.is_directory else None
            if nid is None:
                return None
            inode = self.inode(nid)
        return inode

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every name with its path, the top (``b""``) first, a directory before what is in it.

        Names of a directory come in order, directories' contents after all of them. Raises
        InvalidArchive for a directory that is met twice.
        """
        root = self.root
        yield b"", root
        seen = {root.nid}
        pending = [(b"", root)]
        left = len(self._data) // f.DIRENT.size
        while pending:
            top, directory = pending.pop()
            below = []
            entries = self.entries(directory)
            left -= len(entries)
            if left < 0:
                raise InvalidArchive("EROFS directories that share their entries")
            for name, nid in entries:
                inode = self.inode(nid)
                path = top + b"/" + name if top else name
                yield path, inode
                if inode.is_directory:
                    if nid in seen:
                        raise InvalidArchive("an EROFS directory in two places", path)
                    seen.add(nid)
                    below.append((path, inode))
            pending.extend(reversed(below))

    # -- directories

    def entries(self, directory: Inode) -> list[DirectoryEntry]:
        """What is in a directory, bytewise by name, without ``.`` and ``..``."""
        found: list[DirectoryEntry] = []
        previous = b""
        for number in range(self._dir_blocks(directory)):
            for entry in self._dir_block(directory, number):
                name = entry.name
                if name <= previous:
                    raise InvalidArchive("an EROFS directory out of order")
                previous = name
                found.append(entry)
        return [entry for entry in found if entry.name not in (b".", b"..")]

    def lookup(self, directory: Inode, name: bytes) -> int | None:
        """The number of the inode called ``name`` in a directory, or None."""
        listed = self._listed.get(directory.nid)
        if listed is not None:
            return listed.get(name)
        low, high = 0, self._dir_blocks(directory) - 1
        if not high and len(self._listed) < _LISTED_MAX:  # very many layers are asked for each name
            listed = {entry.name: entry.nid for entry in self._dir_block(directory, 0)}
            self._listed[directory.nid] = listed
            return listed.get(name)
        while low <= high:
            middle = (low + high) // 2
            block = self._dir_block(directory, middle)
            if name < block[0].name:
                high = middle - 1
            elif name > block[-1].name:
                low = middle + 1
            else:
                return next((entry.nid for entry in block if entry.name == name), None)
        return None

    def _dir_blocks(self, directory: Inode) -> int:
        if not directory.is_directory:
            raise InvalidArchive("an EROFS inode that is no directory")
        if directory.size > len(self._data) or directory.layout == f.CHUNKED:
            raise InvalidArchive("an EROFS directory larger than its index")
        blocks: int = directory.size + self.block - 1 >> self._bits
        return blocks

    def _dir_block(self, directory: Inode, number: int) -> list[DirectoryEntry]:
        """The entries in one block of a directory, at least one."""
        start = number << self._bits
        length = min(self.block, directory.size - start)
        block = bytes(self._at(self._inside(directory, start), length))
        first = int.from_bytes(block[8:10], "little") if length >= 12 else 0
        count, rest = divmod(first, f.DIRENT.size)
        if not count or rest or first > length:
            raise InvalidArchive("a damaged EROFS directory")
        heads = list(f.DIRENT.iter_unpack(block[:first]))
        ends = [head[1] for head in heads[1:]]
        last = heads[-1][1]
        end = block.find(b"\0", last)
        ends.append(length if end < 0 else end)
        found = []
        for (nid, at, _), end in zip(heads, ends, strict=True):
            name = block[at:end]
            if not first <= at < end <= length or end - at > f.NAME_MAX:
                raise InvalidArchive("a damaged EROFS directory")
            if b"/" in name or b"\0" in name:
                raise InvalidArchive("an EROFS directory with a name that none can be")
            found.append(DirectoryEntry(name, nid))
        return found

    def _inside(self, inode: Inode, offset: int) -> int:
        """Where in the index the block of an inode's data at ``offset`` begins."""
        if inode.layout == f.INLINE and offset >> self._bits == inode.size - 1 >> self._bits:
            return inode.behind
        return (inode.data << self._bits) + offset

    # -- what else an inode has

    def readlink(self, inode: Inode) -> bytes:
        """The target of a symbolic link."""
        if not inode.is_symlink or not 0 < inode.size <= _SYMLINK_MAX:
            raise InvalidArchive("a damaged EROFS symbolic link")
        if inode.layout == f.CHUNKED:
            raise InvalidArchive("a damaged EROFS symbolic link")
        target = bytearray()
        while len(target) < inode.size:
            length = min(self.block, inode.size - len(target))
            target += self._at(self._inside(inode, len(target)), length)
        if b"\0" in target:
            raise InvalidArchive("a damaged EROFS symbolic link")
        return bytes(target)

    def xattrs(self, inode: Inode) -> dict[str, bytes]:
        """Extended attributes by their full names."""
        if inode.behind == inode.xattrs_at:
            return {}
        area = self._at(inode.xattrs_at, inode.behind - inode.xattrs_at)
        if len(area) < f.XATTR_HEADER.size:
            raise InvalidArchive("damaged EROFS attributes")
        _, shared = f.XATTR_HEADER.unpack_from(area)
        position = f.XATTR_HEADER.size + 4 * shared
        if position > len(area):
            raise InvalidArchive("damaged EROFS attributes")
        found: dict[str, bytes] = {}
        for (number,) in _U32.iter_unpack(area[f.XATTR_HEADER.size : position]):
            self._xattr(self._data, self._shared + 4 * number, found)
        while position < len(area):
            position = self._xattr(area, position, found)
        return found

    def _xattr(self, area: memoryview, position: int, found: dict[str, bytes]) -> int:
        """Add the attribute at a position; where the next one is."""
        if position + 4 > len(area):
            raise InvalidArchive("damaged EROFS attributes")
        length, index, size = f.XATTR_ENTRY.unpack_from(area, position)
        middle = position + 4 + length
        end = middle + size
        prefix = f.XATTR_PREFIXES.get(index)
        if end > len(area) or prefix is None:
            raise InvalidArchive("damaged EROFS attributes")
        name = prefix + os.fsdecode(bytes(area[position + 4 : middle]))
        found[name] = bytes(area[middle:end])
        after: int = (end + 3) & ~3
        return after


@contextmanager
def open_image(
    index: str | bytes | Path, devices: Sequence[str | bytes | Path] = ()
) -> Iterator[Image]:
    """An image of files; the index, a hundredth of a layer, is read into memory.

    A device is opened when a content on it is first read, so that many images can be open.
    Raises InvalidArchive for an empty or a damaged one, OSError.
    """
    with open(index, "rb") as stream:
        image = Image(stream.read())
    with open_devices(image, devices) as opened:
        yield opened


@contextmanager
def open_devices(image: Image, devices: Sequence[str | bytes | Path]) -> Iterator[Image]:
    """An image read before, with its devices; the rest as :func:`open_image`."""
    with ExitStack() as stack:
        yield image.on(_Devices(devices, stack))


class _Devices(Sequence[int]):
    """Descriptors of files that are opened when they are first asked for."""

    def __init__(self, paths: Sequence[str | bytes | Path], stack: ExitStack) -> None:
        self._paths = paths
        self._stack = stack
        self._fds: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, number: int) -> int: ...
    @overload
    def __getitem__(self, number: slice) -> list[int]: ...
    def __getitem__(self, number: int | slice) -> int | list[int]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        fd = self._fds.get(number)
        if fd is None:
            fd = os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, fd)
            self._fds[number] = fd
        return fd
