"""Mount points that a root does not have, and how not to leave them in it.

A container needs /proc, /dev, /etc/hosts and others to mount on; an image need not have them.
What is missing is created, marked with an extended attribute, and removed when the last run
in that root ends, and the parents get their times back: a diff shows nothing of it. The mark
(not a list in memory) tells a later run what an earlier one, that was killed, could not remove.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lamina.kernel import xattr
from lamina.kernel.path import fd_path, open_in_root

_MARK = "user.lamina.mountpoint"
"""Its value is the parent directory's mtime, in nanoseconds, from before."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_MAX_LINKS = 10


@contextmanager
def provided(root_fd: int, wanted: Sequence[tuple[bytes, bool]]) -> Iterator[set[bytes]]:
    """Have the paths of ``wanted`` (path, whether a directory) in the root during the block.

    Yields those that are there: all, but for what a read-only root or an odd image prevents.
    Runs in one root share a lock on its directory; the first makes things with the lock to
    itself, and the last one to let go cleans up.
    """
    made: dict[bytes, int] = {}
    try:
        _lock(root_fd)
        _provide_all(root_fd, wanted, made)
        fcntl.flock(root_fd, fcntl.LOCK_SH)
        # Again: such a change of a lock lets others in between, to clean up perhaps.
        yield _provide_all(root_fd, wanted, made)
    finally:
        _clean(root_fd, made)


def _lock(root_fd: int) -> None:
    """Have the lock alone, or share it with runs that have what they need."""
    while True:
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            try:
                fcntl.flock(root_fd, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                continue
        time.sleep(0.001)


def _provide_all(
    root_fd: int, wanted: Sequence[tuple[bytes, bool]], made: dict[bytes, int]
) -> set[bytes]:
    return {path for path, is_dir in wanted if _provide(root_fd, path, is_dir, made, 0)}


def _provide(root_fd: int, path: bytes, is_dir: bool, made: dict[bytes, int], links: int) -> bool:
    """Whether ``path`` is there now. What was made for it, or for an earlier run, is noted."""
    parts = [part for part in path.split(b"/") if part]
    for count in range(1, len(parts) + 1):
        part = b"/".join(parts[:count])
        part_is_dir = is_dir or count < len(parts)
        found = _mode(root_fd, part, os.O_PATH)
        if found is None:
            link = _link(root_fd, part)
            if link is not None:  # to nowhere: what it names is to be made
                rest = b"/".join((link, *parts[count:]))
                return links < _MAX_LINKS and _provide(root_fd, rest, is_dir, made, links + 1)
            if not _make(root_fd, part, part_is_dir, made):
                return False
        elif stat.S_ISDIR(found) != part_is_dir:
            return False
        else:
            _note_earlier(root_fd, part, made)
    return True


def _mode(root_fd: int, path: bytes, flags: int) -> int | None:
    try:
        fd = open_in_root(root_fd, path, flags)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _link(root_fd: int, path: bytes) -> bytes | None:
    """Where the symbolic link ``path`` leads, from the root; None when it is no link."""
    try:
        fd = open_in_root(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        target = os.readlink(b"", dir_fd=fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    return os.path.join(os.path.dirname(path), target).lstrip(b"/")


def _make(root_fd: int, path: bytes, is_dir: bool, made: dict[bytes, int]) -> bool:
    head, name = os.path.split(path)
    try:
        parent = open_in_root(root_fd, head or b".", _DIRECTORY)
    except OSError:
        return False
    try:
        before = os.fstat(parent)
        if is_dir:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=parent))
        made[path] = before.st_mtime_ns
        os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))
        xattr.set(fd_path(parent, name), _MARK, b"%d" % before.st_mtime_ns)
    except OSError:
        return path in made  # a file system without such attributes
    finally:
        os.close(parent)
    return True


def _note_earlier(root_fd: int, path: bytes, made: dict[bytes, int]) -> None:
    head, name = os.path.split(path)
    try:
        parent = open_in_root(root_fd, head or b".", os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return
    try:
        value = xattr.get(fd_path(parent, name), _MARK)
        if value is not None:
            made.setdefault(path, int(value))
    except (OSError, ValueError):
        return
    finally:
        os.close(parent)


def _clean(root_fd: int, made: dict[bytes, int]) -> None:
    try:
        fcntl.flock(root_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another run is on; it noted the marks
        return
    for path, mtime_ns in reversed(made.items()):  # what is in a directory before it
        head, name = os.path.split(path)
        try:
            parent = open_in_root(root_fd, head or b".", _DIRECTORY)
        except OSError:
            continue
        try:
            _remove(parent, name, mtime_ns)
        finally:
            os.close(parent)


def _remove(parent: int, name: bytes, mtime_ns: int) -> None:
    """Remove a mount point that nobody has put anything into; what is used stays, unmarked."""
    before = os.fstat(parent)
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(name, dir_fd=parent)
        elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
            os.unlink(name, dir_fd=parent)
        else:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
    except FileNotFoundError:
        return
    except OSError:
        try:
            xattr.remove(fd_path(parent, name), _MARK)
        except OSError:
            pass
        return
    if before.st_mtime_ns == mtime_ns:  # else the command changed the directory too
        os.utime(parent, ns=(before.st_atime_ns, mtime_ns))
