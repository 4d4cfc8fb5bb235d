"""Where the names of an archive lie: directories below one root, kept open while they are filled.

A name is cleaned as text first (:func:`clean`), then its directory is resolved below the root
descriptor by :func:`lamina.kernel.path.open_in_root`: symbolic links of the layer are followed as
if the root were ``/``. The last component is never resolved here: callers use it with ``dir_fd``.

A few directories stay open, since archives have runs of entries of one directory. Making a file
changes its directory's time; so each open directory knows the time it is to have, and gets it
back when it is closed. No table of directories is kept: memory does not grow with the archive,
and directories may come before or after what is in them.
"""

from __future__ import annotations

import os
import stat

from lamina.archive.whiteout import WHITEOUT_PREFIX
from lamina.errors import InvalidArchive
from lamina.kernel.path import open_in_root

PATH_LIMIT = 4095
"""Bytes of a path: PATH_MAX without its NUL, so at most some 2,000 directories deep."""
NAME_LIMIT = 255
"""Bytes of one component (NAME_MAX of every file system that layers lie on)."""

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_KEPT_OPEN = 32
_KEPT_PATHS = 4 * _KEPT_OPEN


class NoWay(InvalidArchive):
    """Something of the layer that is no directory stands where a directory has to be."""


def clean(name: bytes) -> bytes:
    """An archive's name as a path relative to the root, without ``.`` and doubled slashes.

    The root itself is ``b""``. A leading slash is dropped, as GNU tar and Docker do. Raises
    InvalidArchive for ``..`` (what it means depends on symbolic links, so no cleaning is right),
    for NUL, and for names longer than Linux has them.
    """
    parts = [part for part in name.split(b"/") if part and part != b"."]
    for part in parts:
        # A whiteout's own name is longer than the one it hides, which may be as long as can be.
        if len(part) > NAME_LIMIT < len(part.removeprefix(WHITEOUT_PREFIX)):
            raise InvalidArchive(f"a name of {len(part)} bytes (the limit is {NAME_LIMIT})", name)
    path = b"/".join(parts)
    if len(path) > PATH_LIMIT:
        raise InvalidArchive(f"a path of {len(path)} bytes (the limit is {PATH_LIMIT})", name)
    if b".." in parts:
        raise InvalidArchive("'..' in the name", name)
    if b"\0" in path:
        raise InvalidArchive("a NUL byte in the name", name)
    return path


def split(path: bytes) -> tuple[bytes, bytes]:
    """(directory, last component) of a clean path."""
    head, _, base = path.rpartition(b"/")
    return head, base


class Directory:
    """An open directory of the layer."""

    __slots__ = ("fd", "gives", "key", "mode", "mtime_ns", "owner", "paths")

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self.fd = fd
        self.key = (status.st_dev, status.st_ino)
        self.mtime_ns = status.st_mtime_ns
        self.mode = stat.S_IMODE(status.st_mode)
        self.owner = (status.st_uid, status.st_gid)
        self.gives: tuple[int, int] | None = None
        """Owner of a file made here, once one was: set-group-ID directories and mounts differ."""
        self.paths: list[bytes] = []


class Tree:
    """The directories below ``root_fd``, which stays the caller's. Close it to set the times.

    ``atime_ns`` is the access time that directories get along with their modification time.
    """

    def __init__(self, root_fd: int, atime_ns: int) -> None:
        self.root = Directory(root_fd)
        self._atime_ns = atime_ns
        self._open: dict[tuple[int, int], Directory] = {}  # least recently used first
        self._paths: dict[bytes, Directory] = {}
        self.head: bytes | None = None
        """What :meth:`at` was asked for last, as the archive has it; None: forgotten."""
        self.last = self.root
        """What it answered."""
        self.barred: tuple[int, int] | None = None
        """Device and inode of a directory that is not the archive's, if there is one."""

    def at(self, head: bytes) -> Directory:
        """The directory called ``head``, a name as archives have them.

        The last two directories returned are open. Raises InvalidArchive as :func:`clean` and
        :meth:`adopt`, and OSError: FileNotFoundError when there is none yet.
        """
        if head != self.head:
            self.last = self._lookup(clean(head))
            self.head = head
        return self.last

    def adopt(self, fd: int, path: bytes) -> Directory:
        """Keep ``fd``, a directory opened for reading, as the directory called ``path``.

        Takes ``fd``, and closes it when the same directory is open already. Raises InvalidArchive
        for the one that is barred.
        """
        try:
            fresh = Directory(fd)
            if fresh.key == self.barred:
                raise InvalidArchive("a link to what is no part of the layer leads there", path)
        except BaseException:
            os.close(fd)
            raise
        known = self.root if fresh.key == self.root.key else self._open.pop(fresh.key, None)
        if known is not None:
            os.close(fd)
            fresh = known
        elif len(self._open) >= _KEPT_OPEN:
            self._close(next(iter(self._open.values())))
        if fresh is not self.root:
            self._open[fresh.key] = fresh
        if len(self._paths) >= _KEPT_PATHS:
            self.forget_paths()
        fresh.paths.append(path)
        self._paths[path] = fresh
        return fresh

    def forget_paths(self) -> None:
        """A directory or link was replaced: resolve every path anew. Directories stay open."""
        for directory in self._paths.values():
            directory.paths.clear()
        self._paths.clear()
        self.head = None

    def close(self) -> None:
        """Give every open directory its time and close it, except the root, which stays open."""
        self.forget_paths()
        while self._open:
            self._close(next(iter(self._open.values())))
        self._restore_time(self.root)

    def discard(self) -> None:
        """Close without another change, when all is lost anyway."""
        self.forget_paths()
        while self._open:
            os.close(self._open.popitem()[1].fd)

    def _lookup(self, path: bytes) -> Directory:
        if not path:
            return self.root
        found = self._paths.get(path)
        if found is None:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            return self.adopt(open_in_root(self.root.fd, path, flags), path)
        if found is not self.root:
            self._open[found.key] = self._open.pop(found.key)
        return found

    def _close(self, directory: Directory) -> None:
        del self._open[directory.key]
        for path in directory.paths:
            self._paths.pop(path, None)
        if directory is self.last:
            self.head = None
        try:
            self._restore_time(directory)
        finally:
            os.close(directory.fd)

    def _restore_time(self, directory: Directory) -> None:
        os.utime(directory.fd, ns=(self._atime_ns, directory.mtime_ns))
