"""Opening files below a directory that someone else may be changing (openat2(2)).

:func:`open_in_root` is the only way into a layer tree: whatever symbolic links and ``..`` a path
has, and whatever another process renames meanwhile, the result lies below the root descriptor.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct
from typing import NoReturn

from lamina.kernel._syscall import (
    NR_OPENAT2,
    c_char_p,
    c_int,
    c_size_t,
    check,
    encode,
    function,
)

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

PATH_MAX = 4096
MAX_LINKS = 40
"""Symbolic links followed in one path, as path_resolution(7) has it."""

_openat2 = function("openat2", NR_OPENAT2, c_int, c_char_p, c_char_p, c_size_t)
_OPEN_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_CREATES = os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 32


def fd_path(fd: int, name: bytes = b"") -> bytes:
    """A path to what ``fd`` refers to, or to ``name`` in it, for calls that take no descriptor.

    Without a name the path is a magic link: calls that do not follow a last link see the link.
    """
    return b"/proc/self/fd/%d/%b" % (fd, name) if name else b"/proc/self/fd/%d" % fd


def openat2(dir_fd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2), with O_CLOEXEC. Linux 5.6; raises OSError (ENOSYS before that)."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    return check(_openat2(dir_fd, encode(path), how, _OPEN_HOW.size), path)


def open_in_root(root_fd: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open ``path`` with ``root_fd`` as the root directory, as if after chroot(2).

    Absolute paths and links start at the root, ``..`` there stays there, and magic links
    (``/proc/*/fd``) are never followed. A last symbolic link is followed unless ``flags`` has
    O_NOFOLLOW. Without openat2 (Linux before 5.6, or a seccomp filter that does not know it) the
    path is walked a step at a time, to the same effect. Raises OSError; EAGAIN only when the tree
    is renamed under our feet again and again.
    """
    if not flags & _CREATES:
        mode = 0  # which openat2, unlike open, insists on
    if _have_openat2():
        for _ in range(_TRIES):
            try:
                return openat2(root_fd, path, flags, mode, _IN_ROOT)
            except OSError as error:
                # A rename or mount anywhere in the system while ".." was resolved.
                if error.errno != errno.EAGAIN:
                    raise
    for _ in range(_TRIES):
        try:
            return _Walk(root_fd, path).open(flags | os.O_CLOEXEC, mode)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def open_same_mount(dir_fd: int, name: bytes, flags: int) -> int:
    """Open one name in a directory, unless something is mounted there: then EXDEV.

    Bind mounts count, though device and inode look like any directory's. A symbolic link is
    never followed.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if _have_openat2():
        return openat2(dir_fd, name, flags, 0, RESOLVE_NO_XDEV)
    fd = os.open(name, flags, dir_fd=dir_fd)
    try:
        if mount_id(fd) != mount_id(dir_fd):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def mount_id(fd: int) -> bytes:
    """What tells the mount of ``fd`` from others, bind mounts of one file system included."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        return next(line for line in info if line.startswith(b"mnt_id:"))


@functools.cache
def _have_openat2() -> bool:
    # Asked by itself, so that EPERM from a seccomp filter is not mistaken for a file's own EPERM.
    try:
        os.close(openat2(-1, b"/", os.O_PATH))
    except OSError:
        return False
    return True


class _Walk:
    """One path's way down from the root, without openat2.

    ``trail`` holds device and inode of every directory from the root to the current one's parent:
    ``..`` must lead to the last of them, else a directory was moved, perhaps out of the root.
    """

    def __init__(self, root_fd: int, path: bytes) -> None:
        self.root_fd = root_fd
        self.path = encode(path)
        self.trail: list[tuple[int, int]] = []
        self.links = 0
        self.pending: list[bytes] = []  # components still to go, the next one last

    def open(self, flags: int, mode: int) -> int:
        """Walk, then open the last component."""
        self.fd = os.dup(self.root_fd)
        try:
            return self.walk(flags, mode)
        except OSError as error:
            error.filename = self.path
            raise
        finally:
            os.close(self.fd)

    def walk(self, flags: int, mode: int) -> int:
        if not self.path:
            _fail(errno.ENOENT)
        if len(self.path) >= PATH_MAX:
            _fail(errno.ENAMETOOLONG)
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        follow = not flags & os.O_NOFOLLOW and not exclusive
        self.push(self.path)
        while True:
            name = self.pending.pop()
            if self.pending:
                self.step(name)
            elif name == b"..":
                self.up()
                self.pending.append(b".")
            elif not follow or not self.follow_last(name):
                return self.open_last(name, flags, mode)

    def push(self, path: bytes) -> None:
        """Put the components of a path before what is pending; an absolute one starts anew."""
        if path.startswith(b"/"):
            self.enter(os.dup(self.root_fd))
            self.trail.clear()
        parts = [part for part in path.split(b"/") if part and part != b"."]
        if not self.pending and (not parts or path.endswith((b"/", b"/."))):
            parts.append(b".")  # so the component before it must be a directory
        self.pending.extend(reversed(parts))

    def step(self, name: bytes) -> None:
        """Go into one component: a directory, a link or ``..``."""
        if name == b"..":
            self.up()
            return
        fd = os.open(name, _STEP, dir_fd=self.fd)
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind == stat.S_IFDIR:
            self.trail.append(_identity(self.fd))
            self.enter(fd)
            return
        try:
            if kind != stat.S_IFLNK:
                _fail(errno.ENOTDIR)
            self.link(os.readlink(b"", dir_fd=fd))
        finally:
            os.close(fd)

    def up(self) -> None:
        if self.trail:
            self.enter(os.open(b"..", _STEP, dir_fd=self.fd))
            if _identity(self.fd) != self.trail.pop():
                _fail(errno.EAGAIN)

    def enter(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd

    def follow_last(self, name: bytes) -> bool:
        """Whether the last component is a link, which then takes its place."""
        try:
            target = os.readlink(name, dir_fd=self.fd)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return False
            raise
        self.link(target)
        return True

    def link(self, target: bytes) -> None:
        self.links += 1
        if self.links > MAX_LINKS:
            _fail(errno.ELOOP)
        self.push(target)

    def open_last(self, name: bytes, flags: int, mode: int) -> int:
        try:
            return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=self.fd)
        except OSError as error:
            if error.errno == errno.ELOOP and not flags & os.O_NOFOLLOW:
                _fail(errno.EAGAIN)  # became a link since it was looked at
            raise


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))
