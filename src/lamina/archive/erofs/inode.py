"""What the reader of an index gives: inodes, names and where contents lie."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import NamedTuple

from lamina.archive.erofs.format import device_parts

_TYPE_BITS = 0o170000


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode, as the index has it."""

    nid: int
    mode: int
    """As st_mode has it."""
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    data: int
    """What the format has there: a block, a chunk format or a device number."""
    layout: int
    xattrs_at: int
    """Position of its attributes."""
    behind: int
    """Position of what comes after them."""

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return self.mode & _TYPE_BITS == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.mode & _TYPE_BITS == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return self.mode & _TYPE_BITS == stat.S_IFLNK

    @property
    def is_whiteout(self) -> bool:
        """Whether overlayfs takes it for one: character device 0:0."""
        return self.mode & _TYPE_BITS == stat.S_IFCHR and self.data == 0

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor of a device, else (0, 0)."""
        if self.mode & _TYPE_BITS in (stat.S_IFCHR, stat.S_IFBLK):
            return device_parts(self.data)
        return 0, 0


class DirectoryEntry(NamedTuple):
    """A name in a directory, and the number of its inode."""

    name: bytes
    nid: int


class Extent(NamedTuple):
    """A run of a file's bytes."""

    offset: int
    length: int
    source: int | None
    """The device it lies on; -1 the index itself; None a hole."""
    position: int
    """Where in it, in bytes."""


class DeviceSlot(NamedTuple):
    """An entry of the device table."""

    tag: bytes
    blocks: int
    start: int
    """Its first block in the common address space."""
