"""The owners in tars, which are ids inside, as a driver's mounts show them: as ids of the host."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

from lamina.errors import MountError
from lamina.kernel.idmap import IdMap


class OwnerMap:
    """An id map, and the user namespace by which mounts get it.

    The namespace is opened when a mount needs it first, one for all mounts, and is kept until
    :meth:`close`, which may come at any time and of which the object recovers.
    """

    def __init__(self, idmap: IdMap = IdMap()) -> None:
        self.idmap = idmap
        self._namespace = -1
        self._close: Callable[[], object] = lambda: None
        self._mutex = threading.Lock()
        self._pid = os.getpid()

    def apply(self, mount: int, name: str) -> None:
        """Let a detached mount, of ``name``, show its owners as they are on the host.

        Raises MountError.
        """
        if not self.idmap:
            return
        from lamina.kernel.userns import idmap_mount

        with self._lock():
            if self._namespace < 0:
                self._namespace = self._open()
                self._close = weakref.finalize(self, os.close, self._namespace)
            try:
                idmap_mount(mount, self._namespace)
            except OSError as error:
                raise MountError(error.errno or 0, "map the owners", name) from error

    def _open(self) -> int:
        from lamina.kernel.userns import open_user_namespace

        try:
            return open_user_namespace(self.idmap)
        except OSError as error:
            what = "make a user namespace for the owners"
            raise MountError(error.errno or 0, what, "unshare(1)") from error

    def close(self) -> None:
        """Give up the namespace. Mounts keep it."""
        with self._lock():
            self._namespace = -1
            self._close()

    def _lock(self) -> threading.Lock:
        if self._pid != os.getpid():  # after fork(2), perhaps while a thread of the parent had it
            self._mutex, self._pid = threading.Lock(), os.getpid()
        return self._mutex


UNMAPPED = OwnerMap()
"""Owners on the host are those in the tar."""
