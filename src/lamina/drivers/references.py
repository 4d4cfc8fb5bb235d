"""Counted references to mounts, shared by all processes that use one run directory.

    run/
      ID.lock     flock(2) LOCK_EX while the mount of ID is made, unmade or removed
      ID.refs     flock(2) LOCK_SH by each process that refers to the mount
      ID.pin      a reference that no process holds: its content is the number of pins

The kernel drops the locks of a process that dies, so that it leaves no count behind. The
directory is to be on a tmpfs: at a reboot the pins go with the mounts.

Lock order: the thread lock of an id, then ``ID.lock``, then ``ID.refs``. No two ids are ever locked
at once.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.drivers.base import check_id
from lamina.kernel.lock import unlock
from lamina.types import LayerId


class References:
    """The references of this process, and questions about everybody's."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._mutex = threading.Lock()
        self._locks: defaultdict[LayerId, threading.RLock] = defaultdict(threading.RLock)
        self._held: dict[LayerId, tuple[int, int]] = {}  # id: (fd of ID.refs, count)
        self._pid = os.getpid()

    @contextmanager
    def transition(self, id: LayerId) -> Iterator[None]:
        """Exclude every other thread and process from changing the mount of ``id``."""
        with self._mutex:
            self._forget_parent()
            lock = self._locks[check_id(id)]
        with lock:
            fd = self._lock_file(id)
            try:
                yield
            finally:
                unlock(fd)

    def acquire(self, id: LayerId) -> int:
        """Take one reference; returns how many this process has now. Within a transition."""
        fd, count = self._held.get(id) or (self._open(id, "refs"), 0)
        if not count:
            fcntl.flock(fd, fcntl.LOCK_SH)
        self._held[id] = fd, count + 1
        return count + 1

    def release(self, id: LayerId) -> bool:
        """Give back one; whether nobody refers to the mount any more. Within a transition."""
        fd, count = self._held.get(id, (-1, 0))
        if count > 1:
            self._held[id] = fd, count - 1
            return False
        if count:
            del self._held[id]
            unlock(fd)
        return not self.taken(id)

    def drop(self, id: LayerId) -> None:
        """Give back all references that this process has. Within a transition."""
        fd, _ = self._held.pop(id, (-1, 0))
        if fd >= 0:
            unlock(fd)

    def mine(self, id: LayerId) -> bool:
        """Whether this process refers to the mount."""
        return id in self._held

    def taken(self, id: LayerId) -> bool:
        """Whether any process, this one included, or a pin refers to the mount."""
        return id in self._held or self.taken_elsewhere(id)

    def taken_elsewhere(self, id: LayerId) -> bool:
        """Whether another process or a pin refers to the mount. Within a transition."""
        if self.pins(id):
            return True
        try:
            fd = os.open(self._path(id, "refs"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        mine, _ = self._held.get(id, (-1, 0))
        try:
            if mine >= 0:
                fcntl.flock(mine, fcntl.LOCK_UN)  # nobody can come between: we have ID.lock
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
            if mine >= 0:
                fcntl.flock(mine, fcntl.LOCK_SH)
        return False

    def pin(self, id: LayerId, more: int = 1) -> None:
        """Add references that outlive the process. Within a transition."""
        self._write_pins(id, self.pins(id) + more)

    def unpin_all(self, id: LayerId) -> None:
        """Take all pins away. Within a transition."""
        if self.pins(id):
            self._write_pins(id, 0)

    def unpin(self, id: LayerId) -> bool:
        """Take one pin away; whether there was one. Within a transition."""
        pins = self.pins(id)
        if pins:
            self._write_pins(id, pins - 1)
        return bool(pins)

    def forget(self, id: LayerId) -> None:
        """Delete the files of an id that is gone. Within a transition; nobody may refer to it."""
        for kind in ("refs", "pin", "lock"):
            try:
                os.unlink(self._path(id, kind))
            except FileNotFoundError:
                pass
        with self._mutex:
            self._locks.pop(id, None)

    def held(self) -> list[LayerId]:
        """The ids that this process refers to."""
        return list(self._held) if self._pid == os.getpid() else []

    def _forget_parent(self) -> None:
        """After fork(2): the references are the parent's, not ours. Closing keeps its locks."""
        if self._pid != os.getpid():
            for fd, _ in self._held.values():
                os.close(fd)
            self._held.clear()
            self._locks.clear()
            self._pid = os.getpid()

    def _path(self, id: LayerId, kind: str) -> str:
        return f"{self._run}/{check_id(id)}.{kind}"

    def _open(self, id: LayerId, kind: str) -> int:
        return os.open(self._path(id, kind), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _lock_file(self, id: LayerId) -> int:
        while True:
            fd = self._open(id, "lock")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                mine = os.fstat(fd)
                if mine.st_nlink:  # else forgotten while we waited: the next one counts
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def pinned(self) -> list[LayerId]:
        """The ids that are pinned."""
        suffix = ".pin"
        names = [name for name in os.listdir(self._run) if name.endswith(suffix)]
        return [check_id(name.removesuffix(suffix)) for name in names]

    def pins(self, id: LayerId) -> int:
        """How many pins the mount has. Within a transition."""
        try:
            with open(self._path(id, "pin"), "rb") as file:
                return int(file.read() or b"0")
        except FileNotFoundError:
            return 0

    def _write_pins(self, id: LayerId, count: int) -> None:
        if not count:
            os.unlink(self._path(id, "pin"))
            return
        new = self._path(id, "pin.new")
        with open(new, "wb") as file:
            file.write(b"%d" % count)
        os.rename(new, self._path(id, "pin"))
