"""From a layer's tar to its index: one pass over the headers, contents left where they are.

    builder = IndexBuilder(beside=Path("beside"))
    builder.read(TarReader(stream))
    built = builder.finish(out_fd, identity=diff_id, tar_size=size)

The stream may be the tar itself, whose contents are skipped, or a tee that writes and hashes it on
the way (:class:`lamina.archive.erofs.tee.Tee`): either way each byte is looked at once.

What the index refers to
    Device 0 is the tar, device 1 the file beside, if one was needed (``Built.beside_size``): it has
    the contents that are no run of blocks in the tar, parts of sparse files and copies of lower
    layers' files that a hard link of this layer goes to.

What is in the tree
    The same as :func:`lamina.archive.unpack.unpack` makes with ``fmt=OVERLAY`` as root; but owners
    are those in the tar, whatever the id map: that is for the mount (MOUNT_ATTR_IDMAP). What
    unpacking gives the present time (directories that are only implied) has 0.
    ``LayerUnsupported`` is raised for the few things that EROFS has no place for: an attribute of
    exactly 64 KiB, some attributes of several hundred KiB together, data of more than 2 TiB.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from mmap import PROT_READ, mmap
from pathlib import Path

from lamina.archive.erofs.attributes import Reading, without_default
from lamina.archive.erofs.below import Lowers
from lamina.archive.erofs.beside import Beside, Content, place
from lamina.archive.erofs.format import BLOCK, BLOCK_BITS, device_number
from lamina.archive.erofs.node import Chunks, Directory, Node, collector_paused
from lamina.archive.erofs.settling import copy_up, settle
from lamina.archive.erofs.tree import LowerFile, Tree
from lamina.archive.erofs.writer import Device, write_index
from lamina.archive.layer import AUFS_LINKS
from lamina.archive.owners import Owners, Warn
from lamina.archive.placement import NAME_LIMIT, PATH_LIMIT, NoWay, clean, split
from lamina.archive.tar import Entry, TarReader, Type
from lamina.archive.whiteout import META_PREFIX, WHITEOUT_PREFIX, Mark, parse
from lamina.errors import InvalidArchive, NotAnArchive, UnmappedId, printable
from lamina.kernel.idmap import IdMap
from lamina.log import Log

log = Log(__name__)

BESIDE_TAG = b"beside"

_ODD_NAMES = frozenset({b"", b".", b".."})
_MAJOR_LIMIT = (1 << 12) - 1  # MKDEV in the kernel's include/linux/kdev_t.h
_MINOR_LIMIT = (1 << 20) - 1
_TIME_LIMIT_NS = 1 << 63  # of directories, as when they are unpacked
_FILE = Type.FILE
_REGULAR = stat.S_IFREG


@dataclass(frozen=True, slots=True)
class Built:
    """What came of a layer's tar."""

    size: int
    """Bytes of the regular files of the layer, a hard-linked one once."""
    entries: int
    """Entries in the archive, markers among them."""
    inodes: int
    index_size: int
    """Bytes of the index."""
    beside_size: int
    """Length of the file beside, holes included; 0: there is none."""


class IndexBuilder:
    """The index of one layer in the making.

    ``lowers`` are the layers below (None: not known, so that every whiteout is written); a function
    is asked for them at the end only. ``beside`` is where the file beside goes, if one is needed;
    without it contents that need one are LayerUnsupported. ``idmap`` is what mounts of the index
    are to have: an owner that it has no place for is refused. About 500 bytes of memory an entry.
    """

    def __init__(
        self,
        *,
        lowers: Lowers | None = None,
        beside: Path | None = None,
        idmap: IdMap = IdMap(),
        warn: Warn = log.warning,
    ) -> None:
        self.entries = 0
        self._owners = Owners(idmap) if idmap else None
        self._tree = Tree()
        self._lowers = lowers
        self._beside = Beside(beside)
        self._reading = Reading(warn, self._owners)
        self._aufs_links: dict[bytes, Node] = {}
        self._content: Content = tuple
        self._makers = {
            Type.DIRECTORY: self._directory,
            Type.SYMLINK: self._symlink,
            Type.HARDLINK: self._hardlink,
            Type.FIFO: self._fifo,
            Type.CHARACTER: self._device,
            Type.BLOCK: self._device,
        }

    def read(self, reader: TarReader) -> None:
        """All entries of an archive, to its end.

        Raises InvalidArchive and UnmappedId as unpacking does, LayerUnsupported, and OSError.
        """
        chunks = reader.chunks
        add = self.add
        for entry in reader:
            add(entry, chunks)
        self._content = tuple

    def add(self, entry: Entry, content: Content) -> None:
        """One more entry, whose payload begins ``entry.offset`` bytes into the tar.

        ``content`` gives the payload; it is called when part of it has to be copied.
        """
        self.entries += 1
        self._content = content
        try:
            self._place(entry)
        except InvalidArchive as error:
            if error.entry == entry.name:
                raise
            raise InvalidArchive(error.why, entry.name) from error
        except UnmappedId as error:
            error.add_note(f"entry {entry.name!r}")
            raise

    def finish(self, out: int, *, identity: str, tar_size: int) -> Built:
        """Write the index to ``out``, an empty file.

        ``identity`` is the layer's DiffID: the uuid comes from it, and it names the tar in the
        device table. ``tar_size`` is the length of the tar in bytes.
        """
        settle(self._tree, self._lowers, self._beside)
        self._beside.close()
        tar = Device(tag_of(identity), tar_size + BLOCK - 1 >> BLOCK_BITS)
        devices = [tar]
        if self._beside.blocks:
            devices.append(Device(BESIDE_TAG, self._beside.blocks))
        written = write_index(self._tree.root, out, devices, identity, tar.blocks)
        return Built(
            written.size,
            self.entries,
            written.inodes,
            written.index_size,
            self._beside.blocks << BLOCK_BITS,
        )

    def discard(self) -> None:
        """Close what is open, when nothing is to come of it. The file beside stays as it is."""
        self._beside.discard()

    # -- entries that make something

    def _place(self, entry: Entry) -> None:
        name = entry.name
        if WHITEOUT_PREFIX in name and self._marker(entry):
            return
        head, _, base = name.rpartition(b"/")
        if base in _ODD_NAMES or len(base) > NAME_LIMIT or b"\0" in base:
            path = clean(name)
            if not path:
                self._root(entry)
                return
            head, base = split(path)
        tree = self._tree
        parent = tree.last if head == tree.head else tree.parent(head)
        kind = entry.type
        if kind is _FILE:
            if entry.xattrs or entry.pax or entry.sparse is not None:
                node = self._file(entry)
            else:  # most are: spared the calls
                if self._owners is not None:
                    self._owners.of(entry.uid, entry.gid)
                mode, block = _REGULAR | entry.mode, entry.offset >> BLOCK_BITS
                node = Node(mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, block)
            if base in parent.children or parent.whiteouts:
                tree.put(parent, base, node)
            else:
                parent.children[base] = node
        else:
            self._makers[kind](entry, parent, base)

    def _file(self, entry: Entry) -> Node:
        data: int | Chunks = entry.offset >> BLOCK_BITS
        if entry.sparse is not None and entry.size:
            content = self._content
            data = place(entry.sparse, entry.size, entry.offset, content, self._beside)
        return self._node(entry, _REGULAR | entry.mode, entry.size, data)

    def _node(self, entry: Entry, mode: int, size: int = 0, data: int | bytes | Chunks = 0) -> Node:
        xattrs = None
        if self._owners is not None:
            self._owners.of(entry.uid, entry.gid)
        if entry.xattrs or entry.pax:
            mode, xattrs = self._reading.of(entry, mode)
        return Node(mode, entry.uid, entry.gid, entry.mtime_ns, size, data, xattrs)

    def _directory(self, entry: Entry, parent: Directory, base: bytes) -> None:
        clean(entry.name)
        self._describe(self._tree.make_directory(parent, base), entry)

    def _root(self, entry: Entry) -> None:
        if entry.type is not Type.DIRECTORY:
            raise InvalidArchive("no name, or that of the top, for what is no directory")
        self._describe(self._tree.root, entry)

    def _describe(self, directory: Directory, entry: Entry) -> None:
        """Give a directory, new or not, what its entry says; attributes add to those it has."""
        if not -_TIME_LIMIT_NS < entry.mtime_ns < _TIME_LIMIT_NS:
            raise InvalidArchive("a time that no file can have")
        node = self._node(entry, stat.S_IFDIR | entry.mode)
        if directory.described and directory.xattrs:
            node.xattrs = {**without_default(directory.xattrs), **(node.xattrs or {})}
        directory.become(node)
        directory.described = True

    def _symlink(self, entry: Entry, parent: Directory, base: bytes) -> None:
        target = entry.linkname
        if not target or b"\0" in target or len(target) > PATH_LIMIT:
            raise InvalidArchive("a symbolic link whose target no link can have")
        node = self._node(entry, stat.S_IFLNK | 0o777, data=target)
        self._tree.put(parent, base, node)

    def _fifo(self, entry: Entry, parent: Directory, base: bytes) -> None:
        self._tree.put(parent, base, self._node(entry, stat.S_IFIFO | entry.mode))

    def _device(self, entry: Entry, parent: Directory, base: bytes) -> None:
        major, minor = entry.devmajor, entry.devminor
        if not (0 <= major <= _MAJOR_LIMIT and 0 <= minor <= _MINOR_LIMIT):
            raise InvalidArchive(f"there can be no device {major}:{minor}")
        kind = stat.S_IFCHR if entry.type is Type.CHARACTER else stat.S_IFBLK
        if kind == stat.S_IFCHR and not major and not minor:
            self._reading.warn_once(
                "whiteout", "character device 0:0 is left out: it would be a whiteout", entry.name
            )
            return
        node = self._node(entry, kind | entry.mode, data=device_number(major, minor))
        self._tree.put(parent, base, node)

    # -- hard links

    def _hardlink(self, entry: Entry, parent: Directory, base: bytes) -> None:
        target = clean(entry.linkname)
        parts = target.split(b"/")
        if parts[0] == AUFS_LINKS and len(parts) == 2 and parts[1] in self._aufs_links:
            self._tree.put(parent, base, self._aufs_links[parts[1]])
            return
        if any(part.startswith(WHITEOUT_PREFIX) for part in parts):
            raise InvalidArchive(f"a hard link to '{printable(target)}', which is no file")
        found = self._tree.find(target)
        if found is not None:
            self._tree.link(found, parent, base)
            return
        if self._lowers is None:
            raise InvalidArchive(f"a hard link to '{printable(target)}', which is not there")
        node = self._tree.copied.get(target)
        if node is None:
            node = LowerFile(target, entry.name)
            if not callable(self._lowers):  # known by now: no reason to wait
                copy_up(node, self._lowers.find(target), self._beside)
            self._tree.copied[target] = node
        self._tree.put(parent, base, node)

    # -- markers

    def _marker(self, entry: Entry) -> bool:
        """Act on an entry that is a marker, or AUFS's bookkeeping; whether it is one."""
        head, base = split(clean(entry.name))
        for part in head.split(b"/"):
            if part == AUFS_LINKS and entry.type is Type.FILE and part == head:
                self._aufs_link(entry, base)
            if part.startswith(META_PREFIX):
                return True
            if part.startswith(WHITEOUT_PREFIX):
                raise InvalidArchive("an entry below a whiteout")
        mark, name = parse(base)
        if mark is Mark.OPAQUE:
            self._tree.set_opaque(self._tree.parent(head))
        elif mark is Mark.WHITEOUT:
            self._hide(head, name)
        return mark is not Mark.ENTRY

    def _hide(self, head: bytes, name: bytes) -> None:
        try:
            parent = self._tree.parent(head)
        except NoWay:
            return  # umoci(1) writes them for what was in a directory that is a file now
        self._tree.hide(parent, name)

    def _aufs_link(self, entry: Entry, base: bytes) -> None:
        """Keep a source of AUFS's hard links for the links to come."""
        if len(base) > NAME_LIMIT - 1:
            raise InvalidArchive("a name too long for AUFS")
        self._aufs_links[base] = self._file(entry)


def tag_of(identity: str) -> bytes:
    """What names a layer's tar in a device table: the DiffID's hexadecimal digits."""
    return identity.rpartition(":")[2].encode()[:64]


def build_index(
    tar: int | str | Path,
    out: int,
    *,
    identity: str,
    lowers: Lowers | None = None,
    beside: Path | None = None,
    warn: Warn = log.warning,
) -> Built:
    """Write the index of ``tar``, a plain tar (a path, or a descriptor, read from its start).

    For the rest see :class:`IndexBuilder`. Raises InvalidArchive, LayerUnsupported, OSError.
    """
    builder = IndexBuilder(lowers=lowers, beside=beside, warn=warn)
    fd = os.dup(tar) if isinstance(tar, int) else os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if not size:
            raise NotAnArchive("empty")
        data = mmap(fd, size, prot=PROT_READ)
        reader = TarReader(data)
        with collector_paused():
            try:
                builder.read(reader)
            finally:
                reader.close()
                with suppress(BufferError):  # the traceback of an error still has a piece
                    data.close()
            return builder.finish(out, identity=identity, tar_size=size)
    finally:
        builder.discard()
        os.close(fd)
