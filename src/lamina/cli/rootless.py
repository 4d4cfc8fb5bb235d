"""Ordinary users: the store is used from within a user namespace, as Podman does it.

There the user is root, may mount, and owns the ids that /etc/subuid and /etc/subgid grant.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lamina.kernel import namespaces

if TYPE_CHECKING:
    from lamina.cli.settings import Settings
    from lamina.kernel.idmap import IdMap


def needed() -> bool:
    """Whether this process has no rights of its own over mounts and owners."""
    return os.geteuid() != 0


def enter(settings: Settings, *, required: bool = False) -> Settings:
    """Enter a user namespace and a mount namespace of our own, if we are an ordinary user.

    Returns settings with the root and run directories spelled out: inside, the user is root,
    whose own would be others. Where the machine does not allow it the process stays as it is,
    and drivers that need it say so; with ``required`` that raises PermissionRequired.
    """
    if not needed():
        return settings
    settings = locate(settings)
    try:
        _become_root()
    except OSError as error:
        if required:
            from lamina.sandbox.helper import no_user_namespace

            raise no_user_namespace(error.strerror or "") from error
    return settings


def locate(settings: Settings) -> Settings:
    """The settings with no directory left open."""
    from lamina.store.roots import default_root, default_run

    root = settings.root or default_root()
    return settings._replace(root=root, run_root=settings.run_root or default_run(root))


def _become_root() -> None:
    from lamina.kernel.idmap import IdMap

    idmap = IdMap.for_user()
    mapper = _Mapper(idmap)
    try:
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
    except OSError:
        mapper.cancel()
        raise
    mapper.go()


class _Mapper:
    """A child left in the outer namespace: only from there newuidmap(1) can write our maps."""

    def __init__(self, idmap: IdMap) -> None:
        reader, self._start = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._start)
            self._work(reader, idmap)
        os.close(reader)

    def _work(self, reader: int, idmap: IdMap) -> None:
        status = 1
        try:
            if os.read(reader, 1):
                _write_maps(os.getppid(), idmap)
            status = 0
        finally:
            os._exit(status)

    def go(self) -> None:
        os.write(self._start, b"x")
        if self._wait() != 0:
            raise PermissionError(1, "its id map was refused")

    def cancel(self) -> None:
        self._wait()

    def _wait(self) -> int:
        os.close(self._start)
        _, status = os.waitpid(self._pid, 0)
        return status


def _write_maps(pid: int, idmap: IdMap) -> None:
    """The whole map, or where newuidmap(1) is missing or refuses, the user's own id alone."""
    try:
        namespaces.write_id_maps(pid, idmap)
    except OSError:
        own = type(idmap)(idmap.uids[:1], idmap.gids[:1])
        namespaces.write_id_maps(pid, own)
