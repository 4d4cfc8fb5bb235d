"""Locks between processes, and the order they are taken in.

A container's lock file (``RUN/containers/ID``) has three bytes, each a lock of its own:

    USE       shared by all who have the container mounted; exclusive for whoever replaces or
              removes its writable layer
    RUNNING   shared by all who run a command in it
    OWNER     shared by the maker of a container that is to end with its maker

They are open file description locks (fcntl(2), F_OFD_SETLK): two objects of one process
exclude each other too, the kernel drops the locks of a process that dies, and asking who
holds one takes none. The file is there while it is needed: who has all three bytes alone
deletes it, and who got a lock on a deleted file tries anew.

Lock order. Nobody waits for a lock while holding one that is later here:

    1. a container's USE (waited for only when shared; an exclusive one is tried)
    2. the driver's locks of one layer id (lamina.drivers.references), inside the driver's calls
    3. the database's write lock, for one short transaction

A lease (:mod:`lamina.store.leases`) is no lock that anyone waits for. Nothing is held while a
tar is read or a tree is deleted, except USE by whoever reads from that container.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

USE = 0
RUNNING = 1
OWNER = 2
_BYTES = 3

_FLOCK = "hhqqi"  # struct flock of fcntl.h: l_type, l_whence, l_start, l_len, l_pid


class LockFile:
    """An open lock file; :meth:`close` unlocks, and deletes it if nobody else uses it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _open(path)

    def share(self, byte: int) -> None:
        """Lock a byte together with others; waits for one who has it alone."""
        while True:
            self._set(byte, fcntl.F_RDLCK, fcntl.F_OFD_SETLKW)
            if self._current():
                return

    def try_alone(self, byte: int) -> bool:
        """Lock a byte alone, perhaps after sharing it. False, and as before, if others have it."""
        while self._try(byte, 1):
            if self._current():
                return True
        return False

    def release(self, byte: int) -> None:
        """Unlock a byte."""
        self._set(byte, fcntl.F_UNLCK, fcntl.F_OFD_SETLK)

    def close(self) -> None:
        """Unlock all. May be called twice.

        Unlocking is explicit: a child that another thread forked has the file open until it
        execs, and would keep the locks.
        """
        if self._fd < 0:
            return
        try:
            if self._try(0, _BYTES):
                os.unlink(self._path)
        except FileNotFoundError:
            pass
        finally:
            self._set(0, fcntl.F_UNLCK, fcntl.F_OFD_SETLK, _BYTES)
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        """Unlock with the object, should nobody have closed it."""
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    def _try(self, start: int, length: int) -> bool:
        try:
            self._set(start, fcntl.F_WRLCK, fcntl.F_OFD_SETLK, length)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2)
            return False
        return True

    def _set(self, start: int, kind: int, command: int, length: int = 1) -> None:
        request = struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
        fcntl.fcntl(self._fd, command, request)

    def _current(self) -> bool:
        """Whether the file is still there; if not, opens the next one.

        Not needed by who holds another byte already: then nobody could delete it.
        """
        if os.fstat(self._fd).st_nlink:
            return True
        os.close(self._fd)
        self._fd = _open(self._path)
        return False


def taken(path: Path, *bytes_: int) -> bool:
    """Whether anyone has one of those bytes of a lock file locked. Takes no lock itself."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return any(_is_taken(fd, byte) for byte in bytes_)
    finally:
        os.close(fd)


def _is_taken(fd: int, byte: int) -> bool:
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request))[0]
    return kind != fcntl.F_UNLCK


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)
