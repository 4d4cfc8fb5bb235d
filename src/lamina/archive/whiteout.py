"""How a layer says that something below it is gone.

A *whiteout* hides one name of the layers below; an *opaque* directory hides everything that they
have in it. Three formats are in use:

============ ============================== ======================= ============================
format       whiteout of NAME               opaque directory        where
============ ============================== ======================= ============================
AUFS         file ``.wh.NAME`` beside it    file ``.wh..wh..opq``   AUFS branches, OCI layer tars
OVERLAY      device 0:0 called NAME (or the trusted.overlay.opaque  overlayfs
             xattr form, below)             = "y"
OVERLAY_USER the same                       user.overlay.opaque     overlayfs with ``userxattr``
============ ============================== ======================= ============================

Overlayfs keeps attributes of the content that are called as its own marks are under another name
(Linux 6.7): ``trusted.overlay.opaque`` as ``trusted.overlay.overlay.opaque``.

The xattr form (Linux 6.7, Documentation/filesystems/overlayfs.rst): an empty file with
``overlay.whiteout`` in a directory with ``overlay.opaque`` = "x". It is read always, and written
where devices can't be made, as in a layer that itself lies on overlayfs; only lower layers'
whiteouts are recognised in that form.

No kernel looks at an opaque mark on the top directory of a layer: it has no effect in any format.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from abc import ABC, abstractmethod
from typing import Final, NamedTuple

from lamina.errors import InvalidArchive, LayerBroken, printable
from lamina.kernel import xattr
from lamina.kernel.path import fd_path

WHITEOUT_PREFIX: Final = b".wh."
META_PREFIX: Final = b".wh..wh."
OPAQUE: Final = b".wh..wh..opq"

_MARKER_MODE = 0o444
_NO_NAMES = (b"", b".", b"..")
# A whiteout's name can be too long where the name itself is not, and on a mount of the kernel's
# aufs no name that begins as a whiteout's can even be looked up (EPERM).
_NOT_THERE = (errno.ENOENT, errno.ENAMETOOLONG, errno.EPERM)


class Mark(enum.Enum):
    """What a name in an OCI layer tar, or in an AUFS branch, stands for."""

    ENTRY = "entry"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    META = "meta"
    """AUFS's own bookkeeping (``.wh..wh.aufs``, ``.wh..wh.orph``, ``.wh..wh.plnk``)."""


def parse(name: bytes) -> tuple[Mark, bytes]:
    """What the last component of an archive name means, and the name that it is about.

    Raises InvalidArchive for a whiteout of nothing, of ``.`` or of ``..``.
    """
    if not name.startswith(WHITEOUT_PREFIX):
        return Mark.ENTRY, name
    if name == OPAQUE:
        return Mark.OPAQUE, b""
    if name.startswith(META_PREFIX):
        return Mark.META, name
    hidden = name[len(WHITEOUT_PREFIX) :]
    if hidden in _NO_NAMES:
        raise InvalidArchive("a whiteout that names no entry", name)
    return Mark.WHITEOUT, hidden


class Listing(NamedTuple):
    """What one directory of a layer holds; names sorted bytewise."""

    opaque: bool
    whiteouts: list[bytes]
    """Names of lower layers that this directory hides."""
    names: list[bytes]
    """Its own entries, no markers among them."""


class Hidden(enum.Enum):
    """What a look-up gives for a name that the directory whites out."""

    HIDDEN = enum.auto()


HIDDEN: Final = Hidden.HIDDEN


class View(ABC):
    """How a directory tree is to be read. Directories are given as readable descriptors."""

    @abstractmethod
    def listing(self, dir_fd: int) -> Listing:
        """A directory's entries and markers told apart."""

    @abstractmethod
    def lookup(self, dir_fd: int, name: bytes) -> os.stat_result | Hidden | None:
        """lstat(2) of one entry; HIDDEN for a whiteout; None when the directory says nothing."""

    def is_opaque(self, dir_fd: int) -> bool:
        """Whether the directory hides what lower layers have in it."""
        return False

    def private_xattr(self, name: str) -> bool:
        """Whether an attribute is the format's own, which belongs to no diff."""
        return False

    def content_xattr(self, name: str) -> str | None:
        """What an attribute on disk is called by who looks at the mounted layer; None: private."""
        return None if self.private_xattr(name) else name

    def disk_xattr(self, name: str) -> str | None:
        """The inverse: what an attribute of the content is called on disk.

        None where there is no name for it that could not be taken for a mark.
        """
        return name

    def check_xattr(self, name: str, path: bytes) -> None:
        """Raise LayerBroken where an attribute says that part of the entry is in another layer."""
        return


class Format(View):
    """One way to write whiteouts."""

    name: str
    marks_name = True
    """Whether a whiteout is kept under the very name that it hides."""

    @abstractmethod
    def write_whiteout(self, dir_fd: int, name: bytes) -> None:
        """Hide ``name`` of the layers below. Already hidden is fine.

        Raises FileExistsError when the format keeps the whiteout under the name itself and the
        layer has a live entry there, and InvalidArchive for a name that can't be hidden.
        """

    @abstractmethod
    def remove_whiteout(self, dir_fd: int, name: bytes) -> None:
        """Take a whiteout back; one that is not there is no error."""

    @abstractmethod
    def set_opaque(self, dir_fd: int) -> None:
        """Hide all that the layers below have in this directory."""

    @abstractmethod
    def clear_opaque(self, dir_fd: int) -> None:
        """Let the layers below show through again; not opaque is no error."""

    @abstractmethod
    def hidden_name(self, dir_fd: int, name: bytes, status: os.stat_result) -> bytes | None:
        """The lower name that this directory entry hides, or None when it is no whiteout."""

    def is_meta(self, name: bytes) -> bool:
        """Whether a name is the format's bookkeeping, which belongs to no diff."""
        return False

    def __repr__(self) -> str:
        return f"<whiteout format {self.name}>"


class _Plain(View):
    def listing(self, dir_fd: int) -> Listing:
        return Listing(False, [], sorted(map(os.fsencode, os.listdir(dir_fd))))

    def lookup(self, dir_fd: int, name: bytes) -> os.stat_result | Hidden | None:
        return _lstat(dir_fd, name)


class _Aufs(Format):
    marks_name = False

    def __init__(self, name: str, reserved: tuple[str, ...] = ()) -> None:
        self.name = name
        self._reserved = reserved

    def disk_xattr(self, name: str) -> str | None:
        return None if name.startswith(self._reserved) else name

    def listing(self, dir_fd: int) -> Listing:
        names = [os.fsencode(name) for name in os.listdir(dir_fd)]
        marked = [name for name in names if name.startswith(WHITEOUT_PREFIX)]
        if not marked:
            names.sort()
            return Listing(False, [], names)
        hidden = {name[len(WHITEOUT_PREFIX) :] for name in marked if not self.is_meta(name)}
        hidden.discard(OPAQUE[len(WHITEOUT_PREFIX) :])
        # A whiteout beside a live entry of that name wins, as AUFS itself has it.
        names = [n for n in names if n not in hidden and not n.startswith(WHITEOUT_PREFIX)]
        return Listing(OPAQUE in marked, sorted(hidden), sorted(names))

    def lookup(self, dir_fd: int, name: bytes) -> os.stat_result | Hidden | None:
        if name.startswith(WHITEOUT_PREFIX):
            return None
        if _lstat(dir_fd, WHITEOUT_PREFIX + name) is not None:
            return HIDDEN
        return _lstat(dir_fd, name)

    def write_whiteout(self, dir_fd: int, name: bytes) -> None:
        if name in _NO_NAMES or name.startswith(WHITEOUT_PREFIX):
            raise InvalidArchive("AUFS has no whiteout for this name", name)
        _touch(dir_fd, WHITEOUT_PREFIX + name)

    def remove_whiteout(self, dir_fd: int, name: bytes) -> None:
        _unlink(dir_fd, WHITEOUT_PREFIX + name)

    def set_opaque(self, dir_fd: int) -> None:
        _touch(dir_fd, OPAQUE)

    def clear_opaque(self, dir_fd: int) -> None:
        _unlink(dir_fd, OPAQUE)

    def is_opaque(self, dir_fd: int) -> bool:
        return _lstat(dir_fd, OPAQUE) is not None

    def hidden_name(self, dir_fd: int, name: bytes, status: os.stat_result) -> bytes | None:
        if not name.startswith(WHITEOUT_PREFIX) or name == OPAQUE or self.is_meta(name):
            return None
        return name[len(WHITEOUT_PREFIX) :]

    def is_meta(self, name: bytes) -> bool:
        if not name.startswith(WHITEOUT_PREFIX) or name == OPAQUE:
            return False
        return name.startswith(META_PREFIX) or name[len(WHITEOUT_PREFIX) :] in _NO_NAMES


class _Overlay(Format):
    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self.prefix = namespace + ".overlay."
        self._escaped = self.prefix + "overlay."
        self._opaque = self.prefix + "opaque"
        self._whiteout = self.prefix + "whiteout"
        # Mount options redirect_dir and metacopy: such a layer can't be read by itself.
        self._elsewhere = (self.prefix + "redirect", self.prefix + "metacopy")

    def listing(self, dir_fd: int) -> Listing:
        mark = self._mark(dir_fd)
        names = []
        devices = []
        with os.scandir(dir_fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                names.append(name)
                # Only a device can be a whiteout, or any file of a directory marked "x". The
                # directory's own record tells which is which, so that nothing else is looked at.
                if mark == b"x" or not (
                    entry.is_file(follow_symlinks=False)
                    or entry.is_dir(follow_symlinks=False)
                    or entry.is_symlink()
                ):
                    devices.append(name)
        hidden = [name for name in devices if self._hides(dir_fd, name, mark)]
        if hidden:
            gone = frozenset(hidden)
            names = [name for name in names if name not in gone]
            hidden.sort()
        names.sort()
        return Listing(mark == b"y", hidden, names)

    def lookup(self, dir_fd: int, name: bytes) -> os.stat_result | Hidden | None:
        status = _lstat(dir_fd, name)
        if status is None or self.hidden_name(dir_fd, name, status) is None:
            return status
        return HIDDEN

    def write_whiteout(self, dir_fd: int, name: bytes) -> None:
        if name in _NO_NAMES:
            raise InvalidArchive("a whiteout that names no entry", name)
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
        except FileExistsError:
            if not self._hides(dir_fd, name, self._mark(dir_fd)):
                raise
        except PermissionError:
            self._write_by_xattr(dir_fd, name)

    def _write_by_xattr(self, dir_fd: int, name: bytes) -> None:
        if self._mark(dir_fd) == b"y":
            return  # all is hidden already, and the kernel would show the file
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0, dir_fd=dir_fd)
        try:
            xattr.set(fd, self._whiteout, b"y")
            xattr.set(dir_fd, self._opaque, b"x")
        except OSError:
            _unlink(dir_fd, name)
            raise
        finally:
            os.close(fd)

    def remove_whiteout(self, dir_fd: int, name: bytes) -> None:
        if self._hides(dir_fd, name, self._mark(dir_fd)):
            _unlink(dir_fd, name)

    def set_opaque(self, dir_fd: int) -> None:
        mark = self._mark(dir_fd)
        if mark == b"y":
            return
        if mark == b"x":  # "x" and "y" share the attribute: without "x" such files would show
            for entry in os.listdir(dir_fd):
                self.remove_whiteout(dir_fd, os.fsencode(entry))
        xattr.set(dir_fd, self._opaque, b"y")

    def clear_opaque(self, dir_fd: int) -> None:
        if self._mark(dir_fd) == b"y":
            xattr.remove(dir_fd, self._opaque)

    def is_opaque(self, dir_fd: int) -> bool:
        return self._mark(dir_fd) == b"y"

    def hidden_name(self, dir_fd: int, name: bytes, status: os.stat_result) -> bytes | None:
        if stat.S_ISCHR(status.st_mode):
            return name if status.st_rdev == 0 else None
        if status.st_size == 0 and stat.S_ISREG(status.st_mode):
            return name if self._marked_file(dir_fd, name, self._mark(dir_fd)) else None
        return None

    def private_xattr(self, name: str) -> bool:
        return name.startswith(self.prefix) and not name.startswith(self._escaped)

    def content_xattr(self, name: str) -> str | None:
        if name.startswith(self._escaped):
            return self.prefix + name[len(self._escaped) :]
        return None if name.startswith(self.prefix) else name

    def disk_xattr(self, name: str) -> str | None:
        if name.startswith(self.prefix):
            return self._escaped + name[len(self.prefix) :]
        return name

    def check_xattr(self, name: str, path: bytes) -> None:
        if name in self._elsewhere:
            what = printable(path)
            raise LayerBroken(self.name, f"part of '{what}' is in another layer ({name})")

    def _mark(self, dir_fd: int) -> bytes | None:
        try:
            return xattr.get(dir_fd, self._opaque)
        except xattr.XattrUnsupported:
            return None

    def _hides(self, dir_fd: int, name: bytes, mark: bytes | None) -> bool:
        status = _lstat(dir_fd, name)
        if status is None:
            return False
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        regular = status.st_size == 0 and stat.S_ISREG(status.st_mode)
        return regular and self._marked_file(dir_fd, name, mark)

    def _marked_file(self, dir_fd: int, name: bytes, mark: bytes | None) -> bool:
        return mark == b"x" and xattr.get(fd_path(dir_fd, name), self._whiteout) is not None


def same_xattr(name: str, source: View, target: View) -> bool:
    """Whether an attribute on disk says in both formats the same about the content."""
    inside = source.content_xattr(name)
    return inside is not None and target.disk_xattr(inside) == name


PLAIN: Final[View] = _Plain()
"""A tree that is no layer: every name is an entry."""

# What fuse-overlayfs, by which an AUFS branch may be mounted, reads as its own.
AUFS: Final[Format] = _Aufs("aufs", ("user.fuseoverlayfs.", "trusted.overlay.", "user.overlay."))
STAGED: Final[Format] = _Aufs("staged")
"""As AUFS, for a layer that no union file system will see."""
OVERLAY: Final[Format] = _Overlay("overlay", "trusted")
OVERLAY_USER: Final[Format] = _Overlay("overlay-user", "user")

FORMATS: Final = {form.name: form for form in (AUFS, OVERLAY, OVERLAY_USER)}


def _touch(dir_fd: int, name: bytes) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        os.close(os.open(name, flags, _MARKER_MODE, dir_fd=dir_fd))
    except FileExistsError:
        pass


def _unlink(dir_fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def _lstat(dir_fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return None
