"""Removing a directory tree for good, whatever stands in the way, and nothing outside it.

Names are unlinked relative to directory descriptors, each opened without following a link or
crossing into a mount, so that nobody can lead the walk astray meanwhile. What is mounted below is
lazily unmounted (the duty of Docker's ``EnsureRemoveAll``); where that is not allowed, the removal
fails rather than delete through the mount.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from lamina.kernel import flags as inode_flags
from lamina.kernel.mount import MNT_DETACH, UMOUNT_NOFOLLOW, umount2
from lamina.kernel.path import fd_path, open_same_mount

T = TypeVar("T")

BUSY_TRIES = 5
BUSY_PAUSE = 0.1
"""Seconds between tries at something busy that is not a mount (moby pkg/system EnsureRemoveAll)."""

_OPEN_DIRECTORIES = 64  # descriptors held at once; ancestors beyond are found again through ".."
_RESCANS = 100  # times that files turned up in a directory just emptied
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
_FULL = stat.S_IRWXU


def remove_tree(path: str | bytes | os.PathLike[str]) -> None:
    """Remove a file, link or directory with all that is in it; what is not there is no error.

    Mounts on and below ``path`` are detached first, immutable and append-only flags cleared,
    directories without permissions made writable. Any depth; the time is that of the unlink calls.
    Raises OSError with the path that could not be removed; then part of the tree may be gone.
    """
    top = os.fsdecode(path)
    parent, name = os.path.split(top.rstrip("/"))
    if name in ("", ".", ".."):
        raise OSError(errno.EINVAL, "can't be removed by this name", top)
    try:
        parent_fd = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    remover = _Remover(parent, parent_fd)
    try:
        remover.run(name)
    finally:
        remover.close()


class _Frame:
    """A directory on the way down. ``fd`` is -1 while closed to save descriptors."""

    __slots__ = ("fd", "identity", "name", "scans", "subdirs")

    def __init__(self, name: str, fd: int, scans: int) -> None:
        self.name = name
        self.fd = fd
        self.identity = _identity(fd)
        self.subdirs: list[str] = []
        self.scans = scans


class _Remover:
    """The walk: an explicit stack of directories, the one at hand last."""

    def __init__(self, parent: str, parent_fd: int) -> None:
        self.parent = parent
        self.frames = [_Frame("", parent_fd, 0)]  # the first one is not ours to change
        self.busy = 0

    def run(self, name: str) -> None:
        if not self.unlink(self.frames[0].fd, name):
            self.enter(name)
        while len(self.frames) > 1:
            subdirs = self.frames[-1].subdirs
            if subdirs:
                self.enter(subdirs.pop())
            else:
                self.leave()

    def close(self) -> None:
        for frame in self.frames:
            if frame.fd >= 0:
                os.close(frame.fd)

    def enter(self, name: str, scans: int = 0) -> None:
        """Open a directory and unlink all in it but directories, which are left for later."""
        fd = self.persist(_open_directory, self.frames[-1].fd, name)
        if fd is None:
            return
        if len(self.frames) > _OPEN_DIRECTORIES:
            self.forget(self.frames[-_OPEN_DIRECTORIES])
        frame = _Frame(name, fd, scans)
        self.frames.append(frame)
        unlink = os.unlink
        with os.scandir(fd) as entries:
            for entry in entries:
                child = entry.name
                if _is_directory(entry):
                    frame.subdirs.append(child)
                    continue
                try:
                    unlink(child, dir_fd=fd)
                except OSError:
                    if not self.unlink(fd, child):
                        frame.subdirs.append(child)

    def forget(self, far: _Frame) -> None:
        if far is not self.frames[0] and far.fd >= 0:
            os.close(far.fd)
            far.fd = -1

    def leave(self) -> None:
        """Remove the directory at hand, now empty, or begin again where files turned up in it."""
        frame = self.frames[-1]
        above = self.frames[-2]
        if above.fd < 0:
            above.fd = self.parent_of(frame, above)
        self.frames.pop()
        os.close(frame.fd)
        try:
            self.persist(_rmdir, above.fd, frame.name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or frame.scans >= _RESCANS:
                raise
            self.enter(frame.name, frame.scans + 1)

    def parent_of(self, frame: _Frame, expected: _Frame) -> int:
        fd = self.persist(_open_directory, frame.fd, "..")
        if fd is None or _identity(fd) != expected.identity:
            if fd is not None:
                os.close(fd)
            raise OSError(errno.ESTALE, "moved while being removed", self.path_of(""))
        return fd

    def unlink(self, dir_fd: int, name: str) -> bool:
        """Unlink what is no directory, come what may; False if it is one."""
        try:
            self.persist(_unlink, dir_fd, name)
        except IsADirectoryError:
            return False
        return True

    def persist(self, action: Callable[[int, str], T], dir_fd: int, name: str) -> T | None:
        """Do it, mending what is in the way; None when there is nothing of that name any more."""
        while True:
            try:
                return action(dir_fd, name)
            except FileNotFoundError:
                return None
            except IsADirectoryError:
                raise
            except OSError as error:
                if not self.mend(error, dir_fd, name):
                    code = errno.EBUSY if error.errno == errno.EXDEV else error.errno
                    raise OSError(code, os.strerror(code or 0), self.path_of(name)) from error

    def mend(self, error: OSError, dir_fd: int, name: str) -> bool:
        """Whether something was changed, so that another try may go better."""
        inside = dir_fd != self.frames[0].fd
        if error.errno in (errno.EBUSY, errno.EXDEV):
            return _detach(dir_fd, name) or (error.errno == errno.EBUSY and self.wait())
        if error.errno == errno.EPERM:
            return (inside and _unprotect(dir_fd)) or _unprotect_name(dir_fd, name)
        if error.errno == errno.EACCES:
            return (inside and _permit(dir_fd)) or _permit_name(dir_fd, name)
        if error.errno in (errno.ENOTDIR, errno.ELOOP):  # no directory any more
            return _removed_or_changed(dir_fd, name)
        return False

    def wait(self) -> bool:
        self.busy += 1
        time.sleep(BUSY_PAUSE)
        return self.busy <= BUSY_TRIES

    def path_of(self, name: str) -> str:
        return os.path.join(self.parent, *(frame.name for frame in self.frames[1:]), name)


def _open_directory(dir_fd: int, name: str) -> int:
    return open_same_mount(dir_fd, os.fsencode(name), _DIRECTORY)


def _rmdir(dir_fd: int, name: str) -> None:
    os.rmdir(name, dir_fd=dir_fd)


def _unlink(dir_fd: int, name: str) -> None:
    os.unlink(name, dir_fd=dir_fd)


def _removed_or_changed(dir_fd: int, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except (FileNotFoundError, IsADirectoryError):  # changed again since
        return True
    except OSError:
        return False
    return True


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # no d_type here, and it vanished: unlink will tell
        return False


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _detach(dir_fd: int, name: str) -> bool:
    """Lazily unmount what is mounted at a name; False where nothing is, or it may not be."""
    try:
        umount2(fd_path(dir_fd, os.fsencode(name)), MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError:
        return False
    return True


def _unprotect(fd: int) -> bool:
    try:
        return inode_flags.unprotect(fd)
    except OSError:
        return False


def _unprotect_name(dir_fd: int, name: str) -> bool:
    # The ioctl of the flags means something else on a device, so look before opening for real.
    try:
        mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return False
        fd = open_same_mount(dir_fd, os.fsencode(name), os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return _unprotect(fd)
    finally:
        os.close(fd)


def _permit(fd: int) -> bool:
    """Let the owner of a directory change it; False when it could already."""
    try:
        if os.fstat(fd).st_mode & _FULL == _FULL:
            return False
        os.chmod(fd_path(fd), _FULL)
    except OSError:
        return False
    return True


def _permit_name(dir_fd: int, name: str) -> bool:
    try:
        fd = open_same_mount(dir_fd, os.fsencode(name), os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        return _permit(fd)
    finally:
        os.close(fd)
