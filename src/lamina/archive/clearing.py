"""Removing what is below one directory descriptor, and never through a mount point.

:func:`lamina.kernel.remove.remove_tree` is for what is ours: it unmounts what is in the way. Here
a tree that others use is changed, perhaps the running system's; so a mount point stops it.
"""

from __future__ import annotations

import os
import stat

from lamina.archive.descent import Descent, open_same_mount


def unlink(dir_fd: int, name: bytes) -> None:
    """Unlink what is no directory; what is not there is no error."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def remove(dir_fd: int, name: bytes) -> None:
    """Remove ``name`` and what is below it; what is not there is no error.

    Raises OSError: EBUSY for a mount point, before anything below it is touched.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        unlink(dir_fd, name)
        return
    fd = open_same_mount(dir_fd, name)
    try:
        empty(fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def empty(dir_fd: int) -> None:
    """Remove all that is in a directory, however deep; errors as of :func:`remove`."""
    descent = Descent([dir_fd], one_mount=True)
    try:
        pending = [_unlink_files(dir_fd)]
        names: list[bytes] = []
        while True:
            if pending[-1]:
                name = pending[-1].pop()
                descent.enter(name, [0])
                names.append(name)
                pending.append(_unlink_files(descent.fds[0]))
                continue
            pending.pop()
            if not pending:
                return
            descent.leave()
            os.rmdir(names.pop(), dir_fd=descent.fds[0])
    finally:
        descent.close()


def _unlink_files(dir_fd: int) -> list[bytes]:
    """Unlink what is no directory; the names of the directories."""
    directories = []
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
            else:
                unlink(dir_fd, name)
    return directories
