"""User namespaces that nobody lives in: the id map of an idmapped mount (mount_setattr(2))."""

from __future__ import annotations

import os
import select
import signal

from lamina.kernel import namespaces
from lamina.kernel.mount import MOUNT_ATTR_IDMAP, mount_setattr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamina.kernel.idmap import IdMap

_COMMAND = ("unshare", "--user", "--", "cat")


def open_user_namespace(idmap: IdMap) -> int:
    """A descriptor of a new user namespace with the maps of ``idmap``, which must have ranges.

    In a mount that is idmapped by it what belongs to an id inside on disk belongs to that id's
    host id. The namespace lives as long as the descriptor or such a mount, and no process of it
    is left. Needs the right to write the maps: root, for any. Raises OSError: FileNotFoundError
    without unshare(1) of util-linux, PermissionError where the kernel makes no such namespace.
    """
    if not idmap:
        raise ValueError("an id map without ranges")
    from_child, to_us = os.pipe2(os.O_CLOEXEC)
    to_child, from_us = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.posix_spawnp(
            _COMMAND[0],
            _COMMAND,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, to_child, 0),
                (os.POSIX_SPAWN_DUP2, to_us, 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        try:
            os.write(from_us, b".")
            if not _answers(child, from_child):  # what cat says comes after the unshare(2)
                raise PermissionError(
                    1, "no user namespace can be made (unshare(1), /proc/sys/user)"
                )
            namespaces.write_id_maps(child, idmap)
            return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            # Not by the end of its input, which a child that another thread forked may hold open.
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    finally:
        for fd in (from_child, to_us, to_child, from_us):
            os.close(fd)


def _answers(child: int, from_child: int) -> bool:
    """Whether a child says something before it ends."""
    pidfd = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(from_child, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        return from_child in dict(poll.poll())
    finally:
        os.close(pidfd)


def idmap_mount(fd: int, namespace: int) -> None:
    """Give a detached mount the map of a user namespace; it must not have one yet.

    Linux 5.12, or what a file system says: EROFS 5.19, as a lower layer of overlayfs too. Raises
    OSError: EINVAL where the kernel or the file system has no such mounts.
    """
    mount_setattr(fd, attr_set=MOUNT_ATTR_IDMAP, userns_fd=namespace)
