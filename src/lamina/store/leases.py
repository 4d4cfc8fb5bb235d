"""Who is at work in a store: so that what the dead left can be told from what the living make.

    ROOT/staging/
      TOKEN.lock    flock(2) LOCK_EX, held while the owner lives
      TOKEN/        the owner's half-made files; they leave by rename(2)

Each open :class:`~lamina.store.Store` takes one lease when it first needs one. The rows of
things half-made or half-removed (tables ``pending`` and ``holds``) bear its token. A lease
whose lock is free, or whose files are gone, is dead; whoever finds it sweeps what bears its
token (:mod:`lamina.store.sweep`). Two do not sweep the same: the sweeper holds the lock.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.kernel.lock import try_lock, unlock
from lamina.kernel.remove import remove_tree
from lamina.log import Log

log = Log(__name__)


class Leases:
    """The leases of one store: our own, and a look at those of others."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._own: str | None = None
        self._pid = os.getpid()
        self._serial = itertools.count()
        self._end: weakref.finalize[..., Leases] | None = None

    @property
    def token(self) -> str:
        """Our own lease, taken now if we had none."""
        with self._mutex:
            if self._own is None or self._pid != os.getpid():
                self._own, lock = self._take()
                self._pid = os.getpid()
                self._end = weakref.finalize(self, _end, self._path, self._own, lock, self._pid)
            return self._own

    @contextmanager
    def path(self) -> Iterator[Path]:
        """A path for a new file or directory of ours; after the block what is there is deleted."""
        path = self._path / self.token / str(next(self._serial))
        try:
            yield path
        finally:
            remove_tree(path)

    @contextmanager
    def dead(self, mentioned: Iterable[str]) -> Iterator[list[str]]:
        """The tokens, on disk or ``mentioned``, whose owner is dead; nobody else gets them.

        After the block their files are deleted. When it raises they stay, to be found again.
        """
        locks: dict[str, int] = {}
        try:
            for token in self._on_disk().union(mentioned):
                if token != self._own and (lock := try_lock(self._lock_path(token))) is not None:
                    locks[token] = lock
            yield list(locks)
            for token in locks:
                _delete(self._path, token)
        finally:
            for lock in locks.values():
                unlock(lock)

    def close(self) -> None:
        """End our lease. A new one is taken when needed."""
        with self._mutex:
            if self._end is not None:
                self._end()
            self._own = self._end = None

    def _take(self) -> tuple[str, int]:
        while True:
            token = os.urandom(8).hex()
            lock = try_lock(self._lock_path(token))
            if lock is not None:
                break
        try:
            os.mkdir(self._path / token, 0o700)
        except BaseException:
            os.close(lock)
            raise
        return token, lock

    def _on_disk(self) -> set[str]:
        return {name.removesuffix(".lock") for name in os.listdir(self._path)}

    def _lock_path(self, token: str) -> str:
        return f"{self._path}/{token}.lock"


def _delete(path: Path, token: str) -> None:
    remove_tree(path / token)
    (path / f"{token}.lock").unlink(missing_ok=True)


def _end(path: Path, token: str, lock: int, pid: int) -> None:
    """Delete the files of a lease and unlock it; a forked child only closes its copy."""
    try:
        if pid == os.getpid():
            _delete(path, token)
    except OSError as error:
        log.warning("can't delete %s: %s", path / token, error)
    finally:
        if pid == os.getpid():
            unlock(lock)
        else:
            os.close(lock)
