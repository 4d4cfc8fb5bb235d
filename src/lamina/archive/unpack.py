"""Unpacking a layer's tar into a directory: everything in it, nothing beside it.

What the archive's names mean
    A name is taken apart as text (:mod:`lamina.archive.placement`); ``..`` is refused. Its
    directory is resolved below the root, following symbolic links of this layer as if the root
    were ``/``; links of lower layers are not looked at (as Docker and containerd do). A directory
    that has entries but none of its own takes its metadata from the topmost lower layer that has
    it, else it is root's, 0755. A parent that is a file, or a link to nowhere, is InvalidArchive.

Entries of one name
    The last one wins, whatever the types; two directories become one, with the later one's
    metadata. A directory that replaced something else of its layer is opaque: what it replaced
    hid the lower layers.

Whiteouts
    hide names of lower layers only, wherever they stand in the archive: a name that the layer has
    itself wins over its own whiteout, and a directory with a whiteout is opaque. An opaque mark on
    the top directory, which no file system looks at, becomes whiteouts of the lower layers' names.

Safety
    Every call takes the descriptor of a directory that was resolved below the root, and one name
    in it, and follows no link there; modes are set on descriptors. Nothing is cleaned up after an
    error: a layer is unpacked into a directory that its driver throws away then.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lamina.archive import owners, zeros
from lamina.archive.layer import AUFS_LINKS, Layer, Lowers, Superseded
from lamina.archive.metadata import Metadata
from lamina.archive.nodes import CREATE
from lamina.archive.owners import Owners, Warn
from lamina.archive.placement import NAME_LIMIT, PATH_LIMIT, Directory, clean, split
from lamina.archive.tar import Entry, TarReader, Type
from lamina.archive.tar.source import Readable
from lamina.archive.whiteout import META_PREFIX, WHITEOUT_PREFIX, Format, Mark, parse
from lamina.errors import InvalidArchive, UnmappedId, printable
from lamina.kernel.idmap import IdMap
from lamina.log import Log

log = Log(__name__)

_IDENTITY = IdMap()
_PROGRESS_STEP = 1 << 20

# What an archive's names alone can bring about.
_NAMES_AT_FAULT = frozenset({errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_ODD_NAMES = frozenset({b"", b".", b".."})
_MAJOR_LIMIT = (1 << 12) - 1  # MKDEV in the kernel's include/linux/kdev_t.h
_MINOR_LIMIT = (1 << 20) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackOptions:
    """How to unpack. The default is what a driver wants for a layer from an image."""

    devices: Literal["create", "refuse", "skip"] | None = None
    """Character and block devices: made, InvalidArchive, or left out with a warning. None: made,
    where this process can make them."""
    punch_zeros: bool = True
    """Make runs of zeros (:mod:`lamina.archive.zeros`) holes, also where the archive has none: a
    layer's tar has the zeros of a sparse file in full (image-spec, layer.md)."""
    owners: Owners | None = None
    """What this process may do; None: what fits it (:func:`lamina.archive.owners.for_process`).
    Its id map counts, then."""
    warn: Warn = log.warning
    on_superseded: Superseded | None = None
    """Called with the path in the layer and an open fd of a regular file with content that is
    about to be removed, because a later entry of the archive takes its place."""
    progress: Callable[[int], None] | None = None
    """Called now and then with how many bytes of the archive are done."""


_DEFAULTS = UnpackOptions()


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came of an archive."""

    size: int
    """Bytes of the regular files of the layer, a hard-linked one once."""
    entries: int
    """Entries in the archive, markers among them."""
    superseded: int
    """Regular files with content that the archive had and the layer does not."""


def unpack(
    stream: Readable | TarReader,
    root: int | str | bytes | Path,
    *,
    fmt: Format,
    idmap: IdMap = _IDENTITY,
    lowers: Lowers | None = None,
    options: UnpackOptions = _DEFAULTS,
) -> Unpacked:
    """Unpack a layer's tar into ``root``, an empty directory (a path, or a descriptor).

    Whiteouts are written in ``fmt``. ``lowers``, topmost first, are the directories of the layers
    below, in the same format, or a function that gives them once they are complete; None: not
    known, so that every whiteout is written. Owners go through ``idmap``. Reads the stream to its
    end.

    Raises:
        InvalidArchive: the archive is damaged, or has an entry that can't be; names it.
        UnmappedId: an owner that the id map, or this user namespace, has no place for.
        OSError: what the file system says (ENOSPC, EDQUOT, EROFS...), with the entry's name.
    """
    root_fd = _open_root(root)
    try:
        policy = options.owners or owners.for_process(idmap)
        metadata = Metadata(policy, fmt, options.warn)
        layer = Layer(root_fd, fmt, lowers, metadata, options.on_superseded)
        try:
            reader = stream if isinstance(stream, TarReader) else TarReader(stream)
            return _Unpacker(reader, layer, options).run()
        finally:
            layer.discard()
    finally:
        os.close(root_fd)


def _open_root(root: int | str | bytes | Path) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(b".", flags, dir_fd=root) if isinstance(root, int) else os.open(root, flags)


class _Unpacker:
    """One archive on its way into one layer."""

    def __init__(self, reader: TarReader, layer: Layer, options: UnpackOptions) -> None:
        self._reader = reader
        self._layer = layer
        self._tree = layer.tree
        self._metadata = layer.metadata
        self._options = options
        self._punch_zeros = options.punch_zeros
        self._makers = {
            Type.DIRECTORY: self._directory,
            Type.SYMLINK: self._symlink,
            Type.HARDLINK: self._hardlink,
            Type.FIFO: self._fifo,
            Type.CHARACTER: self._device,
            Type.BLOCK: self._device,
        }

    def run(self) -> Unpacked:
        """All of the archive."""
        entries = 0
        reported = 0
        progress = self._options.progress
        for entry in self._reader:
            entries += 1
            if progress is not None and entry.offset - reported >= _PROGRESS_STEP:
                reported = entry.offset
                progress(reported)
            try:
                self._place(entry)
            except InvalidArchive as error:
                if error.entry == entry.name:
                    raise
                raise InvalidArchive(error.why, entry.name) from error
            except UnmappedId as error:
                error.add_note(f"entry {entry.name!r}")
                raise
            except OSError as error:
                raise _explained(error, entry) from error
        self._layer.finish()
        if progress is not None:
            progress(entry.offset + entry.stored_size if entries else 0)
        return Unpacked(self._layer.size, entries, self._layer.superseded)

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
        parent = tree.last if head == tree.head else self._layer.parent(head)
        kind = entry.type
        if kind is Type.FILE:  # most are: spared the enum's slow hash
            self._file(entry, parent, base)
        else:
            self._makers[kind](entry, parent, base)

    # -- entries that make something

    def _file(self, entry: Entry, parent: Directory, base: bytes) -> None:
        try:
            fd = os.open(base, CREATE, entry.mode & 0o777, dir_fd=parent.fd)
        except FileExistsError:
            self._layer.make_way(parent, base, clean(entry.name))
            fd = os.open(base, CREATE, entry.mode & 0o777, dir_fd=parent.fd)
        try:
            if not entry.size:
                pass
            elif self._punch_zeros and entry.size >= zeros.RUN and entry.sparse is None:
                zeros.write_punched(fd, self._reader.chunks())
            else:
                self._reader.copy_to(fd)
            self._metadata.file(fd, entry, parent)
        finally:
            os.close(fd)
        layer = self._layer
        if layer.beside:
            layer.made(parent, base)
        layer.size += entry.size

    def _directory(self, entry: Entry, parent: Directory, base: bytes) -> None:
        path = clean(entry.name)
        directory = self._layer.make_directory(parent, base, path, entry.mode)
        self._metadata.directory(directory, path, entry)

    def _root(self, entry: Entry) -> None:
        if entry.type is not Type.DIRECTORY:
            raise InvalidArchive("no name, or that of the top, for what is no directory")
        self._layer.describe_root(entry)

    def _symlink(self, entry: Entry, parent: Directory, base: bytes) -> None:
        target = entry.linkname
        if not target or b"\0" in target or len(target) > PATH_LIMIT:
            raise InvalidArchive("a symbolic link whose target no link can have")
        try:
            os.symlink(target, base, dir_fd=parent.fd)
        except FileExistsError:
            self._layer.make_way(parent, base, clean(entry.name))
            os.symlink(target, base, dir_fd=parent.fd)
        self._finish_node(entry, parent, base, stat.S_IFLNK)

    def _fifo(self, entry: Entry, parent: Directory, base: bytes) -> None:
        self._node(entry, parent, base, stat.S_IFIFO, 0)

    def _device(self, entry: Entry, parent: Directory, base: bytes) -> None:
        policy = self._options.devices
        if policy == "refuse":
            raise InvalidArchive("a device, which is not allowed here")
        if policy is None and not self._metadata.owners.makes_devices:
            policy = "skip"
        if policy == "skip":
            self._metadata.attributes.warn_once("device", "devices are left out", entry.name)
            return
        if not (0 <= entry.devmajor <= _MAJOR_LIMIT and 0 <= entry.devminor <= _MINOR_LIMIT):
            raise InvalidArchive(f"there can be no device {entry.devmajor}:{entry.devminor}")
        kind = stat.S_IFCHR if entry.type is Type.CHARACTER else stat.S_IFBLK
        device = os.makedev(entry.devmajor, entry.devminor)
        if kind == stat.S_IFCHR and device == 0 and self._layer.fmt.marks_name:
            self._metadata.attributes.warn_once(
                "whiteout", "character device 0:0 is left out: it would be a whiteout", entry.name
            )
            return
        self._node(entry, parent, base, kind, device)

    def _node(self, entry: Entry, parent: Directory, base: bytes, kind: int, device: int) -> None:
        mode = kind | entry.mode & 0o777
        try:
            os.mknod(base, mode, device, dir_fd=parent.fd)
        except FileExistsError:
            self._layer.make_way(parent, base, clean(entry.name))
            os.mknod(base, mode, device, dir_fd=parent.fd)
        self._finish_node(entry, parent, base, kind)

    def _finish_node(self, entry: Entry, parent: Directory, base: bytes, kind: int) -> None:
        self._metadata.node(parent, base, entry, kind)
        if self._layer.beside:
            self._layer.made(parent, base)

    # -- hard links

    def _hardlink(self, entry: Entry, parent: Directory, base: bytes) -> None:
        source, name = self._link_source(entry)
        if source.key == parent.key and name == base:
            raise InvalidArchive("a hard link to itself")
        try:
            self._link(source, name, parent, base)
        except FileExistsError:
            self._layer.make_way(parent, base, clean(entry.name))
            try:
                self._link(source, name, parent, base)
            except FileNotFoundError:
                raise InvalidArchive("a hard link that replaces what it links to") from None
        if self._layer.beside:
            self._layer.made(parent, base)

    def _link(self, source: Directory, name: bytes, parent: Directory, base: bytes) -> None:
        os.link(name, base, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)

    def _link_source(self, entry: Entry) -> tuple[Directory, bytes]:
        target = clean(entry.linkname)
        parts = target.split(b"/")
        if parts[0] == AUFS_LINKS and len(parts) == 2:
            kept = self._layer.kept_aside(parts[1])
            if kept is not None:
                return kept
        if any(part.startswith(WHITEOUT_PREFIX) for part in parts):
            raise InvalidArchive(f"a hard link to '{printable(target)}', which is no file")
        found = self._layer.find(target) or self._layer.copy_up(target)
        if found is None:
            raise InvalidArchive(f"a hard link to '{printable(target)}', which is not there")
        return found

    # -- markers

    def _marker(self, entry: Entry) -> bool:
        """Act on an entry that is a marker, or AUFS's bookkeeping; whether it is one."""
        path = clean(entry.name)
        head, base = split(path)
        for part in head.split(b"/"):
            if part == AUFS_LINKS and entry.type is Type.FILE and part == head:
                self._aufs_link(entry, base)
            if part.startswith(META_PREFIX):
                return True
            if part.startswith(WHITEOUT_PREFIX):
                raise InvalidArchive("an entry below a whiteout")
        mark, name = parse(base)
        if mark is Mark.OPAQUE:
            self._layer.set_opaque(self._layer.parent(head))
        elif mark is Mark.WHITEOUT:
            self._layer.hide(head, name)
        return mark is not Mark.ENTRY

    def _aufs_link(self, entry: Entry, base: bytes) -> None:
        """Keep a source of AUFS's hard links for the links to come."""
        parent, name = self._layer.place_aside(base)
        if len(name) > NAME_LIMIT:
            raise InvalidArchive("a name too long for AUFS")
        self._file(entry, parent, name)


def _explained(error: OSError, entry: Entry) -> Exception:
    """A failed call as an error about ``entry``."""
    if error.errno in _NAMES_AT_FAULT:
        return InvalidArchive(error.strerror or "", entry.name)
    return OSError(error.errno, error.strerror, os.fsdecode(entry.name))
