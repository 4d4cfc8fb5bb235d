"""User namespaces that nobody lives in: the id map of an idmapped mount (mount_setattr(2))."""

from __future__ import annotations

import os

from lamina.kernel import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamina.kernel.idmap import IdMap

_COMMAND = ("unshare", "--user", "--", "cat")


def open_user_namespace(idmap: IdMap) -> int:
    """A descriptor of a new user namespace with the maps of ``idmap``, which must have ranges.

    In a mount that is idmapped by it what belongs to an id inside on disk belongs to that id's
    host id. The namespace lives as long as the descriptor or such a mount. Needs the right to
    write the maps: root, for any; FileNotFoundError without unshare(1) of util-linux.
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
            ],
        )
        try:
            os.close(to_us)
            to_us = -1
            os.write(from_us, b".")
            if not os.read(from_child, 1):  # what cat says comes after the unshare(2)
                raise PermissionError(1, "unshare(1) makes no user namespace")
            namespaces.write_id_maps(child, idmap)
            return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(from_us)
            from_us = -1
            os.waitpid(child, 0)
    finally:
        for fd in (from_child, to_us, to_child, from_us):
            if fd >= 0:
                os.close(fd)
