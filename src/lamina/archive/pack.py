"""Layers and plain trees into a tar stream, in the form that OCI image layers have.

The same tree gives the same bytes on any machine: names are sorted, attributes too; there are no
user names, access or change times, inode or device numbers of the file system. Owners are those
inside the container. Modification times are whole where the file's is, else with nanoseconds (in
a pax record): rounding would make a file differ from its own copy.

In a directory the opaque marker comes first, then whiteouts, then entries by name, so that a
reader that applies them one by one is right too (image-spec, layer.md, "Whiteouts"). Of several
names of one file the first carries the content.

Names that begin with ``.wh.`` are left out with a warning: a layer tar has no way to say them.
Sockets are left out with a warning: tar has none.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

from lamina.archive.changes import same_status
from lamina.archive.descent import Tree
from lamina.archive.lookup import Lookup
from lamina.archive.owners import Warn
from lamina.archive.pieces import Pieces
from lamina.archive.stack import Node, Vanished, walk
from lamina.archive.tar import END, Entry, Type, encode, padding
from lamina.archive.whiteout import OPAQUE, PLAIN, WHITEOUT_PREFIX, View
from lamina.archive.xattrs import DEFAULT_POLICY, XattrPolicy, to_container
from lamina.archive.zeros import RUN, data_pieces
from lamina.errors import UnmappedId, printable
from lamina.kernel.idmap import IdMap
from lamina.kernel.path import fd_path
from lamina.log import Log

log = Log(__name__)

_Content: TypeAlias = tuple[int, Sequence[tuple[int, int]]]
"""An open file, and the offset and length of each piece of it that is stored."""

_MOST_PIECES = 1 << 16  # readers have limits for maps
_MARKER_MODE = 0o600
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: Type.FILE,
    stat.S_IFDIR: Type.DIRECTORY,
    stat.S_IFLNK: Type.SYMLINK,
    stat.S_IFCHR: Type.CHARACTER,
    stat.S_IFBLK: Type.BLOCK,
    stat.S_IFIFO: Type.FIFO,
}


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How a tree is packed."""

    sparse: bool = False
    """Runs of zeros (:mod:`lamina.archive.zeros`) are left out, in GNU's sparse format 1.0. Not for
    layers (image-spec, layer.md, "File Attributes"): Docker and Podman read them, but can't give
    them out again, since tar-split has no words for them."""
    xattrs: XattrPolicy = DEFAULT_POLICY
    clamp_mtime_ns: int | None = None
    """The latest time that any entry gets (https://reproducible-builds.org/specs/source-date-epoch)."""
    compare_contents: bool = False
    """Where two trees are compared, read files that have the same size and time: with times that
    were clamped they need not be the same."""
    warn: Warn = log.warning
    """Told, in one line, what is left out or was changed by others meanwhile."""


def pack(
    uppers: Sequence[Tree],
    *,
    fmt: View,
    idmap: IdMap | None = None,
    lowers: Sequence[Tree] | None = None,
    options: PackOptions | None = None,
) -> Iterator[bytes | memoryview]:
    """A tar of what ``uppers`` together do to the layers below them, topmost first.

    Pieces are valid until the next one is asked for. With ``lowers`` given (topmost first; empty:
    there are none), marks that hide nothing there are left out (overlayfs makes every new
    directory opaque), and so is the top directory where it is as theirs.

    Files that change meanwhile keep the size they were opened with: what is missing is zeros,
    with a warning. Those that vanish are left out, with a warning. Raises OSError, and UnmappedId
    for an owner that ``idmap`` does not have.
    """
    with ExitStack() as cleanup:
        below = None if lowers is None else cleanup.enter_context(Lookup(lowers, fmt))
        packer = _Packer(fmt, below, idmap, options)
        yield from packer.stream(walk(uppers, fmt, vanished=packer.vanished))


def pack_tree(
    root: Tree, *, idmap: IdMap | None = None, options: PackOptions | None = None
) -> Iterator[bytes | memoryview]:
    """A tar of a plain tree, such as a mounted layer; otherwise as :func:`pack`."""
    return pack([root], fmt=PLAIN, idmap=idmap, options=options)


def pack_nodes(
    nodes: Callable[[Vanished], Iterable[Node]],
    *,
    idmap: IdMap | None = None,
    options: PackOptions | None = None,
) -> Iterator[bytes | memoryview]:
    """A tar of chosen nodes of one walk over plain trees; otherwise as :func:`pack`.

    ``nodes`` is given what to call with the path of an entry that went away meanwhile.
    """
    packer = _Packer(PLAIN, None, idmap, options)
    return packer.stream(nodes(packer.vanished))


class _Packer:
    def __init__(
        self,
        fmt: View,
        below: Lookup | None = None,
        idmap: IdMap | None = None,
        options: PackOptions | None = None,
    ) -> None:
        self.fmt = fmt
        self.below = below
        self.idmap = idmap or IdMap.identity()
        self.options = options or PackOptions()
        self.pieces = Pieces()
        self.links: dict[tuple[int, int], bytes] = {}
        self.left_out = 0
        """Depth of the directory that is left out with all that is in it, if not 0."""

    def stream(self, nodes: Iterable[Node]) -> Iterator[bytes | memoryview]:
        try:
            for node in nodes:
                if self.left_out:
                    if node.depth > self.left_out:
                        continue
                    self.left_out = 0
                if self.below is not None:
                    while self.below.depth >= max(node.depth, 1):
                        self.below.leave()
                content = self.node(node)
                if content is None:
                    yield from self.pieces.full()
                else:
                    yield from self.content(node, *content)
        finally:
            if isinstance(nodes, Generator):
                nodes.close()
        self.pieces.put(END)
        yield from self.pieces.flush()

    def node(self, node: Node) -> _Content | None:
        """Put an entry's headers, and its content if that is small; else say what to read."""
        if node.name.startswith(WHITEOUT_PREFIX):
            self.leave_out(node, "a layer tar has no way to say a name that begins with '.wh.'")
        elif node.status is None:
            if self.below is None or self.below.find(node.name):
                self.marker(node.path, WHITEOUT_PREFIX + node.name)
        elif node.fd >= 0:
            self.directory(node, node.status)
        elif stat.S_ISSOCK(node.status.st_mode):
            self.leave_out(node, "a socket")
        else:
            try:
                return self.file(node, node.status)
            except FileNotFoundError:
                self.links = {i: path for i, path in self.links.items() if path != node.path}
                self.vanished(node.path)
        return None

    def marker(self, path: bytes, marker: bytes) -> None:
        """The empty file that says something is hidden, in place of the last component."""
        name = path[: path.rfind(b"/") + 1] + marker
        self.pieces.put(encode(Entry(name, mode=_MARKER_MODE)))

    def directory(self, node: Node, status: os.stat_result) -> None:
        opaque = node.opaque
        if self.below is not None:
            if node.depth == 0 and self.below.fd >= 0 and self.as_below(node.fd, status):
                return
            if node.depth > 0:
                self.below.enter(node.name)
                opaque = opaque and self.below.fd >= 0
        entry = self.entry(node.path or b".", status, Type.DIRECTORY, node.fd)
        self.pieces.put(encode(entry))
        if opaque:
            self.marker(node.path + b"/", OPAQUE)

    def as_below(self, fd: int, status: os.stat_result) -> bool:
        """Whether the top directory is as that of the lower layers, times apart."""
        assert self.below is not None
        return same_status(status, os.fstat(self.below.fd)) and (
            self.options.xattrs.read(fd, self.fmt, b"")
            == self.options.xattrs.read(self.below.fd, self.fmt, b"")
        )

    def file(self, node: Node, status: os.stat_result) -> _Content | None:
        """Anything but a directory."""
        if status.st_nlink > 1:
            first = self.links.setdefault((status.st_dev, status.st_ino), node.path)
            if first != node.path:
                entry = self.entry(node.path, status, Type.HARDLINK, None)
                entry.linkname = first
                self.pieces.put(encode(entry))
                return None
        kind = _TYPES[stat.S_IFMT(status.st_mode)]
        if kind is Type.FILE and status.st_size:
            return self.regular(node)
        entry = self.entry(node.path, status, kind, fd_path(node.dir_fd, node.name))
        if kind is Type.SYMLINK:
            entry.linkname = os.readlink(node.name, dir_fd=node.dir_fd)
        elif kind is Type.CHARACTER or kind is Type.BLOCK:
            entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        self.pieces.put(encode(entry))
        return None

    def regular(self, node: Node) -> _Content | None:
        """A regular file that holds something."""
        fd = _open(node)
        rest = None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not the file that it was", node.path)
            entry = self.entry(node.path, status, Type.FILE, fd)
            entry.size = size = status.st_size
            if self.options.sparse and size >= RUN:
                entry.sparse = _sparse_map(fd, size)
            self.pieces.put(encode(entry))
            if entry.sparse is None and self.pieces.read_whole(fd, size):
                self.pieces.put(padding(size))
            else:
                rest = fd, ((0, size),) if entry.sparse is None else entry.sparse
        finally:
            if rest is None:
                os.close(fd)
        return rest

    def content(
        self, node: Node, fd: int, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[bytes | memoryview]:
        """What a file holds; its descriptor is closed."""
        missing = stored = 0
        try:
            yield from self.pieces.full()
            for offset, length in ranges:
                missing += yield from self.pieces.read(fd, offset, length)
                stored += length
        except OSError as error:
            error.filename = node.path
            raise
        finally:
            os.close(fd)
        self.pieces.put(padding(stored))
        if missing:
            self.warn(node.path, f"became shorter while it was packed: {missing} zeros instead")

    def entry(
        self, name: bytes, status: os.stat_result, kind: Type, file: int | bytes | None
    ) -> Entry:
        """What all entries have; attributes are those of ``file``, if given."""
        mtime_ns = status.st_mtime_ns
        if self.options.clamp_mtime_ns is not None:
            mtime_ns = min(mtime_ns, self.options.clamp_mtime_ns)
        uid, gid = status.st_uid, status.st_gid
        xattrs = self.options.xattrs.read(file, self.fmt, name) if file is not None else {}
        if self.idmap:
            try:
                uid, gid = self.idmap.to_container(uid, gid)
                xattrs = to_container(xattrs, self.idmap)
            except UnmappedId as error:
                raise UnmappedId(f"{printable(name)}: {error}") from None
        mode = status.st_mode & 0o7777
        pax = self.options.xattrs.records(xattrs) if xattrs else {}
        return Entry(name, kind, mode, uid, gid, mtime_ns=mtime_ns, xattrs=xattrs, pax=pax)

    def leave_out(self, node: Node, why: str) -> None:
        self.warn(node.path, f"left out: {why}")
        if node.fd >= 0:
            self.left_out = node.depth

    def vanished(self, path: bytes) -> None:
        self.warn(path, "left out: it went away while it was packed")

    def warn(self, path: bytes, message: str) -> None:
        self.options.warn(f"{printable(path)}: {message}")


def _sparse_map(fd: int, size: int) -> tuple[tuple[int, int], ...] | None:
    """The pieces to store of a file with holes; None to store all of it."""
    pieces = tuple(data_pieces(fd, size))
    return None if pieces == ((0, size),) or len(pieces) > _MOST_PIECES else pieces


def _open(node: Node) -> int:
    """A regular file for reading, its access time left alone where that is allowed."""
    try:
        return os.open(node.name, _OPEN_FILE | os.O_NOATIME, dir_fd=node.dir_fd)
    except PermissionError:  # O_NOATIME is for the owner, and for root
        pass
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # now a symbolic link, or a socket
            raise FileNotFoundError(errno.ENOENT, "not the file that it was", node.path) from None
        raise
    try:
        return os.open(node.name, _OPEN_FILE, dir_fd=node.dir_fd)
    except OSError as error:
        error.filename = node.path
        raise
