"""Copying one file of a tree to another place, with all that a file has.

Both ends are a directory descriptor and a name in it; no link is followed. Regular files are
opened once and everything is done on the descriptors; what can't be opened is done by name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from lamina.archive.attributes import Attributes, is_mirror, left_out
from lamina.archive.owners import Owners, Warn
from lamina.archive.whiteout import View
from lamina.kernel import xattr
from lamina.kernel.copy import copy_file
from lamina.kernel.path import fd_path

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Copier:
    """Copies what ``view`` shows, under one policy of owners.

    Attributes that are the format's own stay behind. Raises LayerBroken where one says that part
    of a file is in another layer.
    """

    def __init__(self, owners: Owners, view: View, warn: Warn) -> None:
        self._owners = owners
        self._view = view
        self._attributes = Attributes(owners, warn)

    def node(
        self, src_fd: int, src: bytes, status: os.stat_result, dst_fd: int, dst: bytes
    ) -> int | None:
        """Copy anything but a directory to a name that is free; bytes of a regular file.

        ``status`` is the source's. Sockets, and devices where this process can't make them, are
        left out with a warning. Raises OSError.
        """
        if stat.S_ISREG(status.st_mode):
            return self._file(src_fd, src, dst_fd, dst)
        if stat.S_ISSOCK(status.st_mode):
            self._attributes.warn_once("socket", "sockets are left out", src)
            return None
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(src, dir_fd=src_fd), dst, dir_fd=dst_fd)
        elif not self._make_node(status, dst_fd, dst):
            return None
        self._owners.give_at(dst_fd, dst, (status.st_uid, status.st_gid))
        if not stat.S_ISLNK(status.st_mode):
            chmod_node(dst_fd, dst, status.st_mode)
        self._copy_attributes(fd_path(src_fd, src), fd_path(dst_fd, dst), dst)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(dst, ns=times, dir_fd=dst_fd, follow_symlinks=False)
        return 0

    def _file(self, src_fd: int, src: bytes, dst_fd: int, dst: bytes) -> int:
        source = os.open(src, READ, dir_fd=src_fd)
        try:
            status = os.fstat(source)
            target = os.open(dst, CREATE, 0o600, dir_fd=dst_fd)
            try:
                copy_file(source, target, status.st_size)
                self.metadata(source, target, status, dst)
            finally:
                os.close(target)
        finally:
            os.close(source)
        return status.st_size

    def _make_node(self, status: os.stat_result, dst_fd: int, dst: bytes) -> bool:
        mode = stat.S_IFMT(status.st_mode) | 0o600
        try:
            os.mknod(dst, mode, status.st_rdev, dir_fd=dst_fd)
        except PermissionError:
            if self._owners.makes_devices:
                raise
            self._attributes.warn_once("device", "devices are left out", dst)
            return False
        return True

    def drop_inherited(self, src_fd: int, src: bytes, dst_fd: int, dst: bytes) -> None:
        """Remove what a new file got from its directory's default ACL and its source has not."""
        self._drop_others(fd_path(dst_fd, dst), self.attributes(fd_path(src_fd, src)))

    def open_up(self, fd: int) -> None:
        """Let this process fill an open directory, whose mode is set again when that is done."""
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        filling = self._owners.directory_mode(mode)
        if filling != mode:
            os.fchmod(fd, filling)

    def directory(self, fd: int, status: os.stat_result, attributes: Mapping[str, bytes]) -> None:
        """Give an open directory this metadata and no other; ``attributes`` as of attributes()."""
        self._owners.give(fd, (status.st_uid, status.st_gid))
        os.fchmod(fd, stat.S_IMODE(status.st_mode))
        self._drop_others(fd, attributes)
        self._attributes.apply(fd, attributes, b"")
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))

    def metadata(self, source: int, target: int, status: os.stat_result, name: bytes) -> None:
        """Give the open file or directory ``target`` all that ``source`` has but its content."""
        self._owners.give(target, (status.st_uid, status.st_gid))
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        self._copy_attributes(source, target, name)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def attributes(self, source: int | bytes) -> dict[str, bytes]:
        """The attributes of a file that are to be copied."""
        found = xattr.list_all(source)
        for name in tuple(found):
            self._view.check_xattr(name, b"")
            if self._view.private_xattr(name) or is_mirror(name):
                del found[name]
        return found

    def _drop_others(self, file: int | bytes, attributes: Mapping[str, bytes]) -> None:
        for name in xattr.list_all(file):
            if name not in attributes and not left_out(name) and not _may_be_mark(name):
                xattr.remove(file, name)

    def _copy_attributes(self, source: int | bytes, target: int | bytes, name: bytes) -> None:
        found = self.attributes(source)
        if found:
            self._attributes.apply(target, found, name)


def _may_be_mark(name: str) -> bool:
    """Whether overlayfs, of whichever kind, may have noted it on a file for itself."""
    return name.startswith(("trusted.overlay.", "user.overlay."))


def chmod_node(dir_fd: int, name: bytes, mode: int) -> None:
    """chmod(2) of a device or FIFO, which must not be opened, and never through a link.

    ``mode`` is an st_mode; a file that is not of its type is left alone.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) == stat.S_IFMT(mode):
            os.chmod(fd_path(fd), stat.S_IMODE(mode))  # this link leads to what was opened
    finally:
        os.close(fd)
