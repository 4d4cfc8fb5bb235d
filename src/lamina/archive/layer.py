"""A layer directory being filled: where things go, what makes way, and what of below is hidden."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from lamina.archive.aside import Aside
from lamina.archive.lookup import Lookup
from lamina.archive.metadata import Metadata
from lamina.archive.placement import OPEN_DIRECTORY, Directory, NoWay, Tree, clean, split
from lamina.archive.stack import walk
from lamina.archive.tar import Entry
from lamina.archive.whiteout import HIDDEN, Format
from lamina.archive.xattrs import ACL_DEFAULT
from lamina.errors import InvalidArchive, printable
from lamina.kernel import xattr
from lamina.kernel.path import fd_path

AUFS_LINKS = b".wh..wh.plnk"
"""Where AUFS keeps files with several links: no part of a layer, but entries of Docker's older
archives are hard links to what is in it."""

Superseded = Callable[[bytes, int], None]

Lowers = Sequence[Path] | Callable[[], Sequence[Path]]
"""Directories of the layers below, topmost first; or what waits until they are complete."""

_LINK_SOURCE = b"="


class Layer:
    """The layer directory ``root_fd``, empty at first, over ``lowers`` (None: not known).

    Lower layers that are still in the making are asked for as late as can be: for what the top
    is like and which whiteouts hide something only at the end.

    ``on_superseded(path, fd)`` is told of each regular file with content before it is removed
    again; ``fd`` is open for reading, during the call. ``path`` is the file's in the layer.
    """

    def __init__(
        self,
        root_fd: int,
        fmt: Format,
        lowers: Lowers | None,
        metadata: Metadata,
        on_superseded: Superseded | None,
    ) -> None:
        self.fmt = fmt
        self.metadata = metadata
        self.tree = Tree(root_fd, metadata.now_ns)
        self.aside = Aside(self.tree)
        self.size = 0
        """Bytes of the regular files, a hard-linked one once."""
        self.superseded = 0
        """How many regular files with content were removed again."""
        self._below = lowers
        self._lookup: Lookup | None = None
        self._on_superseded = on_superseded
        self._root_opaque = False
        self._root_described = False
        self._whiteouts = False
        self._unproven: list[tuple[bytes, bytes]] = []  # whiteouts that may hide nothing
        self.beside = False
        """Whether there may be whiteouts that lie beside the name they hide."""
        self._copied: dict[bytes, bytes] = {}  # files of lower layers that links needed
        try:
            _remove_default_acl(root_fd)
        except BaseException:
            self.discard()
            raise

    @property
    def _lowers(self) -> Lookup:
        """The layers below; waits for those that are not complete."""
        if self._lookup is None:
            below = self._below() if callable(self._below) else self._below
            self._lookup = Lookup(below or (), self.fmt)
        return self._lookup

    # -- directories

    def describe_root(self, entry: Entry) -> None:
        """Give the top directory what its entry says, whatever the one below is like."""
        self._root_described = True
        self.metadata.directory(self.tree.root, b"", entry)

    def parent(self, head: bytes) -> Directory:
        """The directory called ``head`` in the archive, made if it is missing.

        Raises InvalidArchive when there is no way to it.
        """
        try:
            return self.tree.at(head)
        except (FileNotFoundError, NotADirectoryError):  # a whiteout is no directory either
            return self._imply(clean(head))

    def make_directory(self, parent: Directory, base: bytes, path: bytes, mode: int) -> Directory:
        """The directory ``base`` in ``parent``, called ``path``: as it is, or made in place of
        what is there."""
        mode = self.metadata.owners.directory_mode(mode & 0o777)
        hid = False
        try:
            os.mkdir(base, mode, dir_fd=parent.fd)
        except FileExistsError:
            found = os.stat(base, dir_fd=parent.fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                return self.tree.adopt(os.open(base, OPEN_DIRECTORY, dir_fd=parent.fd), path)
            self._remove(parent, base, path, found)
            os.mkdir(base, mode, dir_fd=parent.fd)
            hid = True
        if self.beside:
            hid = self._unhide(parent, base) or hid
        self.metadata.forget(path)
        directory = self.tree.adopt(os.open(base, OPEN_DIRECTORY, dir_fd=parent.fd), path)
        if hid:
            self.fmt.set_opaque(directory.fd)
        return directory

    def _imply(self, path: bytes) -> Directory:
        """Make the directories of a clean path that are missing."""
        missing = []
        while True:
            try:
                parent = self.tree.at(path)
                break
            except (FileNotFoundError, NotADirectoryError):
                path, base = split(path)
                missing.append(base)
        for base in reversed(missing):
            path = path + b"/" + base if path else base
            parent = self._imply_one(parent, base, path)
        return parent

    def _imply_one(self, parent: Directory, base: bytes, path: bytes) -> Directory:
        status = self._live(parent, base)
        if status is not None:
            what = "a symbolic link to nowhere" if stat.S_ISLNK(status.st_mode) else "no directory"
            raise NoWay(f"its parent '{printable(path)}' is {what}")
        directory = self.make_directory(parent, base, path, 0o755)
        self._like_below(directory, path)
        return directory

    def _like_below(self, directory: Directory, path: bytes) -> None:
        below = self._lowers.find_path(path)
        if below is None or not below.is_directory:
            self.metadata.implied(directory, path)
            return
        _, base = split(path)
        fd = os.open(base or b".", OPEN_DIRECTORY, dir_fd=below.dir_fd)
        try:
            self.metadata.directory_like(directory, path, fd)
        finally:
            os.close(fd)

    # -- what is there makes way

    def make_way(self, parent: Directory, base: bytes, path: bytes) -> None:
        """Remove whatever ``base`` is in ``parent``, so that something can be made there."""
        status = _lstat(parent, base)
        if status is not None:
            self._remove(parent, base, path, status)

    def made(self, parent: Directory, base: bytes) -> None:
        """Something was made: if ``beside``, this tells, so that its own whiteout goes."""
        self._unhide(parent, base)

    def _remove(self, parent: Directory, base: bytes, path: bytes, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self.aside.remove_tree(parent.fd, base, path, self._gone)
            self.tree.forget_paths()
            return
        if self.fmt.hidden_name(parent.fd, base, status) is None:
            self._gone(path, parent.fd, status, base)
        os.unlink(base, dir_fd=parent.fd)
        if stat.S_ISLNK(status.st_mode):
            self.tree.forget_paths()

    def _gone(self, path: bytes, dir_fd: int, status: os.stat_result, name: bytes) -> None:
        """Account for a file that is about to be unlinked."""
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return
        if status.st_nlink == 1:
            self.size -= status.st_size
        self.superseded += 1
        if self._on_superseded is not None:
            fd = _open_to_read(dir_fd, name)
            try:
                self._on_superseded(path, fd)
            finally:
                os.close(fd)

    # -- what of the lower layers is hidden

    def hide(self, head: bytes, name: bytes) -> None:
        """A whiteout of ``name`` in the directory called ``head`` in the archive.

        It hides what lower layers have, not what this one has. Where there is nothing to hide
        none is written, since it would be listed: overlayfs looks for whiteouts only in
        directories that it merges.
        """
        try:
            parent = self.parent(head)
        except NoWay:
            return  # umoci(1) writes them for what was in a directory that is a file now
        status = self._live(parent, name)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            return
        place = self._place(parent)
        if status is not None:
            self._make_opaque(place + b"/" + name if place else name)
        elif self._may_hide(place, name):
            self.fmt.write_whiteout(self.tree.at(place).fd, name)
            self._whiteouts = True
            self.beside = not self.fmt.marks_name

    def set_opaque(self, directory: Directory) -> None:
        """Hide all that lower layers have in ``directory``."""
        if directory is self.tree.root:
            self._root_opaque = True
        else:
            self._make_opaque(self._place(directory))

    def _make_opaque(self, place: bytes) -> None:
        directory = self.tree.at(place)
        self.fmt.set_opaque(directory.fd)
        if self._whiteouts:  # in it or below they hide nothing any more
            found = [(n.path, n.name) for n in walk([directory.fd], self.fmt) if n.status is None]
            for path, name in found:
                head, _ = split(place + b"/" + path)
                self.fmt.remove_whiteout(self.tree.at(head).fd, name)

    def _may_hide(self, place: bytes, name: bytes) -> bool:
        """Whether a whiteout in the directory called ``place`` may have an effect."""
        parts = place.split(b"/") if place else []
        for count in range(1, len(parts) + 1):
            if self.fmt.is_opaque(self.tree.at(b"/".join(parts[:count])).fd):
                return False
        if self._below is None:
            return True
        if self._lookup is None and callable(self._below):
            self._unproven.append((place, name))
            return True
        return self._hides_something(place, name)

    def _hides_something(self, place: bytes, name: bytes) -> bool:
        return self._lowers.find_path(place + b"/" + name if place else name) is not None

    def _remove_idle_whiteouts(self) -> None:
        """Remove those written before the lower layers were there that hide nothing of them."""
        for place, name in self._unproven:
            try:
                parent = self.tree.at(place)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not self._hides_something(place, name):
                self._unhide(parent, name)

    def _place(self, directory: Directory) -> bytes:
        """The clean path of a directory, without the links that its name may go through."""
        top, place = (os.readlink(fd_path(d.fd)) for d in (self.tree.root, directory))
        return place[len(top) :].lstrip(b"/")

    def _unhide(self, parent: Directory, base: bytes) -> bool:
        hid = self.fmt.lookup(parent.fd, base) is HIDDEN
        if hid:
            self.fmt.remove_whiteout(parent.fd, base)
        return hid

    # -- sources of hard links

    def find(self, path: bytes) -> tuple[Directory, bytes] | None:
        """Directory and name of what the layer itself has at a clean path, or None.

        Raises InvalidArchive when it is a directory.
        """
        head, base = split(path)
        try:
            parent = self.tree.at(head)
        except (FileNotFoundError, NotADirectoryError):
            return None
        status = self._live(parent, base or b".")
        if status is None:
            return None
        if stat.S_ISDIR(status.st_mode):
            raise InvalidArchive(f"a hard link to the directory '{printable(path)}'")
        return parent, base

    def place_aside(self, name: bytes) -> tuple[Directory, bytes]:
        """Where AUFS's source of hard links called ``name`` waits, which is itself no entry."""
        return self.aside.directory, _LINK_SOURCE + name

    def kept_aside(self, name: bytes) -> tuple[Directory, bytes] | None:
        """The source that was placed aside as ``name``, if one was."""
        place = self.place_aside(name)
        return None if _lstat(*place) is None else place

    def copy_up(self, path: bytes) -> tuple[Directory, bytes] | None:
        """A copy of the lower layers' file at a clean path, to be linked to; None: they have none.

        At the end the copy also appears at ``path``, as a link to a lower file makes it in any
        union file system, unless this layer hides that name.
        """
        name = self._copied.get(path)
        if name is None:
            below = self._lowers.find_path(path)
            if below is None:
                return None
            if below.is_directory:
                raise InvalidArchive(f"a hard link to the directory '{printable(path)}'")
            name = self.aside.new_name()
            _, base = split(path)
            copy = self.metadata.copier.node
            size = copy(below.dir_fd, base, below.status, self.aside.directory.fd, name)
            if size is None:
                raise InvalidArchive(f"a hard link to '{printable(path)}', which can't be made")
            self.size += size
            self._copied[path] = name
        return self.aside.directory, name

    # -- the end

    def finish(self) -> None:
        """Do what had to wait for the last entry. The layer is complete then."""
        if not self._root_described:
            self._like_below(self.tree.root, b"")
        self._remove_idle_whiteouts()
        if self._root_opaque:
            self._hide_all_below()
        else:
            for path, name in self._copied.items():
                self._link_copy(path, name)
        self._leave_aside()
        self.metadata.finish(self.tree)
        self.tree.close()

    def discard(self) -> None:
        """Close all that is open; what was made is left as it is."""
        if self._lookup is not None:
            self._lookup.close()
        self.aside.discard()
        self.tree.discard()

    def _hide_all_below(self) -> None:
        self._lowers.go(b"")
        for name in self._lowers.names():
            self.hide(b"", name)

    def _link_copy(self, path: bytes, name: bytes) -> None:
        if self._decided(path):
            return
        head, base = split(path)
        parent = self.parent(head)
        os.link(
            name,
            base,
            src_dir_fd=self.aside.directory.fd,
            dst_dir_fd=parent.fd,
            follow_symlinks=False,
        )

    def _decided(self, path: bytes) -> bool:
        """Whether this layer has or hides a path, so that the lower layers' is not seen."""
        directory = self.tree.root
        done = b""
        for part in path.split(b"/"):
            status = self.fmt.lookup(directory.fd, part)
            if status is None:
                return False
            done = done + b"/" + part if done else part
            if status is HIDDEN or done == path or not stat.S_ISDIR(status.st_mode):
                return True
            directory = self.tree.at(done)
            if self.fmt.is_opaque(directory.fd):
                return True
        return True

    def _leave_aside(self) -> None:
        for name, status in self.aside.files():
            if name.startswith(_LINK_SOURCE):
                path = AUFS_LINKS + b"/" + name.removeprefix(_LINK_SOURCE)
                self._gone(path, self.aside.directory.fd, status, name)
            elif status.st_nlink == 1 and stat.S_ISREG(status.st_mode):
                self.size -= status.st_size  # a copy whose links are all gone again
        self.aside.close()

    def _live(self, parent: Directory, base: bytes) -> os.stat_result | None:
        """Status of what the layer has at ``base``; None for nothing, and for a whiteout."""
        status = self.fmt.lookup(parent.fd, base)
        return None if status is HIDDEN else status


def _remove_default_acl(root_fd: int) -> None:
    """What is made in the directory must not inherit what no archive gave it."""
    try:
        xattr.remove(root_fd, ACL_DEFAULT)
    except xattr.XattrUnsupported:
        pass


def _lstat(parent: Directory, base: bytes) -> os.stat_result | None:
    try:
        return os.stat(base, dir_fd=parent.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _open_to_read(dir_fd: int, name: bytes) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=dir_fd)
    except PermissionError:  # mode 0, and not root
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            os.chmod(fd_path(fd), 0o600)
        finally:
            os.close(fd)
        return os.open(name, flags, dir_fd=dir_fd)
