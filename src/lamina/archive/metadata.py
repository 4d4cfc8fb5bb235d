"""Owner, mode, attributes and times of what was just made, with as few system calls as do.

What creating a file gives it is known, or learned from the first one of each directory; only what
differs from the entry is set. The order matters: chown(2) clears set-user-ID bits and file
capabilities, so mode and attributes come after it, and times last.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping

from lamina.archive import acl
from lamina.archive.attributes import Attributes
from lamina.archive.nodes import Copier, chmod_node
from lamina.archive.owners import Owners, Warn, umask
from lamina.archive.placement import OPEN_DIRECTORY, Directory, Tree, split
from lamina.archive.tar import Entry
from lamina.archive.whiteout import Format
from lamina.archive.xattrs import ACL_DEFAULT
from lamina.errors import InvalidArchive
from lamina.kernel.path import fd_path

_SPECIAL = 0o7000
_PERMISSIONS = 0o7777
_TIME_LIMIT_NS = 1 << 63


class Metadata:
    """Sets metadata under the policies of ``owners`` and ``attributes``.

    Default ACLs, and the modes of directories that their owner could not fill, are set by
    :meth:`finish`, after everything is made: a default ACL changes the modes of new files.
    """

    def __init__(self, owners: Owners, fmt: Format, warn: Warn) -> None:
        self.owners = owners
        self.attributes = Attributes(owners, warn, fmt)
        self.copier = Copier(owners, fmt, warn)
        """For what a lower layer has."""
        self.now_ns = time.time_ns()
        self._to_chmod = umask() | _SPECIAL  # mode bits that creating a file does not give
        self._ids: tuple[int, int] | None = None  # of the last file, and whose they are on disk
        self._owner: tuple[int, int] | None = None
        self._modes: dict[bytes, int] = {}
        self._defaults: dict[bytes, bytes] = {}

    def file(self, fd: int, entry: Entry, parent: Directory) -> None:
        """Finish a regular file, its content written, made in ``parent``."""
        ids = (entry.uid, entry.gid)
        if ids != self._ids:
            self._owner = self.owners.of(*ids)
            self._ids = ids
        owner = self._owner
        if owner is not None and owner != (parent.gives or self._learn(fd, entry, parent)):
            self.owners.give(fd, owner)
        if entry.mode & self._to_chmod:
            os.fchmod(fd, entry.mode)
        if entry.xattrs or entry.pax:
            self.attributes.apply(fd, self._attributes(entry), entry.name)
        try:
            os.utime(fd, ns=(self.now_ns, entry.mtime_ns))
        except OverflowError:
            raise _bad_time(entry) from None

    def directory(self, directory: Directory, path: bytes, entry: Entry) -> None:
        """Give an open directory, new or not, what its entry says; the time when it is closed."""
        owner = self.owners.of(entry.uid, entry.gid)
        self._own(directory, owner)
        self._set_mode(directory, path, entry.mode)
        attributes = self._attributes(entry) if entry.xattrs or entry.pax else {}
        self._defaults.pop(path, None)
        default = attributes.pop(ACL_DEFAULT, None)
        if default is not None:
            self._defaults[path] = default
        self.attributes.apply(directory.fd, attributes, entry.name)
        if not -_TIME_LIMIT_NS < entry.mtime_ns < _TIME_LIMIT_NS:
            raise _bad_time(entry)
        directory.mtime_ns = entry.mtime_ns

    def node(self, parent: Directory, base: bytes, entry: Entry, kind: int) -> None:
        """Finish what can't be opened: a symbolic link, device or FIFO of file type ``kind``."""
        owner = self.owners.of(entry.uid, entry.gid)
        if owner is not None and owner != parent.gives:
            self.owners.give_at(parent.fd, base, owner)
        if kind != stat.S_IFLNK and entry.mode & self._to_chmod:
            chmod_node(parent.fd, base, kind | entry.mode)
        if entry.xattrs or entry.pax:
            path = fd_path(parent.fd, base)
            self.attributes.apply(path, self._attributes(entry), entry.name)
        times = (self.now_ns, entry.mtime_ns)
        try:
            os.utime(base, ns=times, dir_fd=parent.fd, follow_symlinks=False)
        except OverflowError:
            raise _bad_time(entry) from None

    def directory_like(self, directory: Directory, path: bytes, fd: int) -> None:
        """Give a new directory the metadata of the directory ``fd``, of a lower layer."""
        status = os.fstat(fd)
        self._own(directory, (status.st_uid, status.st_gid))
        self._set_mode(directory, path, stat.S_IMODE(status.st_mode))
        attributes = self.copier.attributes(fd)
        default = attributes.pop(ACL_DEFAULT, None)
        if default is not None:
            self._defaults[path] = default
        self.attributes.apply(directory.fd, attributes, path)
        directory.mtime_ns = status.st_mtime_ns

    def implied(self, directory: Directory, path: bytes) -> None:
        """Give a directory that nothing is known of to root, 0755."""
        self._own(directory, self.owners.of(0, 0))
        self._set_mode(directory, path, 0o755)

    def forget(self, path: bytes) -> None:
        """A directory was made: what was put off for an earlier one of this name is void."""
        self._modes.pop(path, None)
        self._defaults.pop(path, None)

    def finish(self, tree: Tree) -> None:
        """Set what was put off."""
        for path, default in self._defaults.items():
            fd = _reopen(tree, path)
            if fd >= 0:
                try:
                    self.attributes.apply(fd, {ACL_DEFAULT: default}, path)
                finally:
                    os.close(fd)
        for path in sorted(self._modes, reverse=True):  # what is in a directory before it
            fd = _reopen(tree, path)
            if fd >= 0:
                try:
                    os.fchmod(fd, self._modes[path])
                finally:
                    os.close(fd)

    def _learn(self, fd: int, entry: Entry, parent: Directory) -> tuple[int, int]:
        """See from a new file what creating files in ``parent`` gives."""
        status = os.fstat(fd)
        if stat.S_IMODE(status.st_mode) != entry.mode & ~self._to_chmod:
            self._to_chmod = _PERMISSIONS  # the umask is not what it was, or not the only one
        parent.gives = (status.st_uid, status.st_gid)
        return parent.gives

    def _own(self, directory: Directory, owner: tuple[int, int] | None) -> None:
        if owner is not None and owner != directory.owner:
            self.owners.give(directory.fd, owner)
            directory.owner = owner
            directory.mode = -1  # chown(2) may have cleared bits
            directory.gives = None

    def _set_mode(self, directory: Directory, path: bytes, mode: int) -> None:
        filling = self.owners.directory_mode(mode)
        if filling != mode:
            self._modes[path] = mode
        else:
            self._modes.pop(path, None)
        if filling != directory.mode:
            os.fchmod(directory.fd, filling)
            directory.mode = filling
            directory.gives = None

    def _attributes(self, entry: Entry) -> dict[str, bytes]:
        found: Mapping[str, bytes] = entry.xattrs
        for record, name in acl.RECORDS.items():
            text = entry.pax.get(record)
            if text and name not in found:
                try:
                    found = {**found, name: acl.parse(text.decode())}
                except ValueError as error:
                    raise InvalidArchive(f"{record}: {error}", entry.name) from error
        return self.attributes.wanted(found, entry.name)


def _bad_time(entry: Entry) -> InvalidArchive:
    return InvalidArchive("a time that no file can have", entry.name)


def _reopen(tree: Tree, path: bytes) -> int:
    """The directory of this path that was made before; -1 when something replaced it."""
    head, base = split(path)
    try:
        return os.open(base or b".", OPEN_DIRECTORY, dir_fd=tree.at(head).fd)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except OSError as error:
        if error.errno == errno.ELOOP:
            return -1
        raise
