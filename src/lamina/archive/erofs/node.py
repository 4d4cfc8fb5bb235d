"""Inodes in memory, between what says what they are (a tar, other indexes) and the writer."""

from __future__ import annotations

import gc
import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

NO_NID = -1

DIRECTORY_MODE = stat.S_IFDIR | 0o755


class Node:
    """One inode, under however many names.

    ``data`` depends on the type. A regular file without holes: its first block among the devices,
    or ``~block`` of the file beside (:mod:`lamina.archive.erofs.beside`). A sparse one: Chunks. A
    symbolic link: its target. A device: its number as the format has it.
    """

    __slots__ = ("data", "gid", "mode", "mtime_ns", "nid", "nlink", "size", "uid", "xattrs")

    def __init__(
        self,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        size: int = 0,
        data: int | bytes | Chunks = 0,
        xattrs: dict[str, bytes] | None = None,
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.size = size
        self.data = data
        self.xattrs = xattrs
        self.nlink = 1
        self.nid = NO_NID

    def become(self, other: Node) -> None:
        """Take over all that ``other`` is, but keep its names."""
        self.mode, self.uid, self.gid = other.mode, other.uid, other.gid
        self.mtime_ns, self.size, self.data = other.mtime_ns, other.size, other.data
        self.xattrs = other.xattrs


class Directory(Node):
    """A directory and what is in it.

    ``parent`` is None once the directory was removed; the root is its own.
    """

    __slots__ = (
        "children",
        "described",
        "hid",
        "implied",
        "layout",
        "opaque",
        "parent",
        "whiteouts",
    )

    def __init__(self, parent: Directory | None) -> None:
        Node.__init__(self, DIRECTORY_MODE, 0, 0, 0)
        self.parent: Directory | None = self if parent is None else parent
        self.children: dict[bytes, Node] = {}
        self.whiteouts: set[bytes] | None = None
        """Names of lower layers that are hidden; none of ``children``."""
        self.opaque = False
        self.hid = False
        """Whether it is opaque for nothing but a whiteout of it, which may have hidden nothing."""
        self.implied: bytes | None = None
        """The path by which something in it was named before the directory itself was."""
        self.described = False
        """Whether an entry says what it is like."""
        self.layout: tuple[list[bytes], list[int], int] | None = None
        """While it is written: its names in order, where blocks end, where its tail begins."""


class Chunks:
    """Where the pieces of a sparse file lie, each of ``1 << bits`` bytes but for the last one."""

    __slots__ = ("bits", "blocks")

    def __init__(self, bits: int, blocks: array[int]) -> None:
        self.bits = bits
        self.blocks = blocks
        """The first block of each, as in Node.data; HOLE_CHUNK for none."""


HOLE_CHUNK = 1 << 40
"""No block at all."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """No search for cyclic garbage meanwhile: among so many new nodes it costs a twelfth of the
    time, and there is none. For what ends soon: not while a stream is waited for."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
