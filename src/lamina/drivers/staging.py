"""A place for half-made and half-removed things, swept of what dead processes left.

    staging/
      PID-N/        one directory for each process (and Staging object) that stages here
      PID-N.lock    LOCK_EX held while that process lives

Things are made in the process's own directory and leave it by rename(2), or are deleted.
Whoever opens the place next deletes the directories whose lock is free.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lamina.kernel.lock import try_lock, unlock
from lamina.kernel.remove import remove_tree
from lamina.log import Log

log = Log(__name__)

_serial = itertools.count()


class Staging:
    """The staging place ``path``; its parent directory must exist."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._own: str | None = None
        self._pid = os.getpid()
        self._close: Callable[[], object] = lambda: None
        os.makedirs(path, mode=0o700, exist_ok=True)
        self.sweep()

    @contextmanager
    def directory(self) -> Iterator[str]:
        """A new, empty directory (0700); what of it is left after the block is deleted."""
        staged = f"{self._own_directory()}/{next(_serial)}"
        os.mkdir(staged, 0o700)
        try:
            yield staged
        finally:
            remove_tree(staged)

    def sweep(self) -> None:
        """Delete what dead processes left. What can't be deleted is logged and stays."""
        owners = {name.removesuffix(".lock") for name in os.listdir(self._path)}
        for owner in owners:
            path = f"{self._path}/{owner}"
            lock = try_lock(f"{path}.lock")
            if lock is None:
                continue
            try:
                _delete(path)
            except OSError as error:
                log.warning("can't delete what a dead process left: %s", error)
            finally:
                unlock(lock)

    def close(self) -> None:
        """Give up this process's directory. The object can be used again."""
        with self._mutex:
            self._close()
            self._own = None

    def _own_directory(self) -> str:
        with self._mutex:
            if self._own is None or self._pid != os.getpid():  # after fork(2) it is the parent's
                self._own, lock = self._claim()
                self._pid = os.getpid()
                self._close = weakref.finalize(self, _give_up, self._own, lock, self._pid)
            return self._own

    def _claim(self) -> tuple[str, int]:
        """Make and lock a directory that is this process's alone."""
        while True:
            path = f"{self._path}/{os.getpid()}-{next(_serial)}"
            lock = try_lock(f"{path}.lock")
            if lock is None:
                continue  # of a process of another pid namespace
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                os.close(lock)
                continue
            except BaseException:
                os.close(lock)
                raise
            return path, lock


def _delete(path: str) -> None:
    remove_tree(path)
    os.unlink(f"{path}.lock")


def _give_up(path: str, lock: int, pid: int) -> None:
    """Delete our directory and unlock; a forked child only closes its copy of the lock."""
    try:
        if pid == os.getpid():
            _delete(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("can't delete the staging directory: %s", error)
    finally:
        os.close(lock)
