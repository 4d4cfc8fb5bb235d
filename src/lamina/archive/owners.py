"""What a process may do with owners, devices and attributes: one object instead of ifs on the way.

=================== ============================ ================== ===========================
who unpacks         owners                       devices            attributes it may not set
=================== ============================ ================== ===========================
:class:`Root`       as the archive says          made               an error
:class:`Inner`      as the archive says, if      left out           left out: ``trusted.*``, and
                    mapped; else UnmappedId                         what else the kernel refuses
:class:`Single`     everything is the user's     left out           left out
=================== ============================ ================== ===========================

"Left out" warns (:data:`Warn`). All three go through an id map first, which says what the
archive's ids are in this process's user namespace.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from lamina.errors import InvalidArchive, UnmappedId
from lamina.kernel.idmap import IdMap

Warn: TypeAlias = Callable[[str], None]

_ID_LIMIT = 0xFFFF_FFFE
"""The greatest id there is: 2^32 - 1 means "leave as it is" to chown(2)."""
_REMEMBERED = 1024
_CAP_CHOWN = 0


class Owners:
    """The rights of who unpacks; see the module."""

    makes_devices = False
    keeps_attributes = False
    """Whether a refused attribute is an error, rather than left out with a warning."""

    def __init__(self, idmap: IdMap) -> None:
        self.idmap = idmap
        self._known: dict[tuple[int, int], tuple[int, int]] = {}

    def of(self, uid: int, gid: int) -> tuple[int, int] | None:
        """The owner on disk of what the archive gives to (uid, gid); None: whoever makes it.

        Raises UnmappedId, and InvalidArchive for a number that is no id.
        """
        found = self._known.get((uid, gid))
        if found is None:
            if not (0 <= uid <= _ID_LIMIT and 0 <= gid <= _ID_LIMIT):
                raise InvalidArchive(f"{uid}:{gid} can't own a file")
            found = self.idmap.to_host(uid, gid)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[uid, gid] = found
        return found

    def directory_mode(self, mode: int) -> int:
        """The mode for a directory while it is filled."""
        return mode

    def give(self, fd: int, owner: tuple[int, int]) -> None:
        """Make ``owner``, in ids on disk, the owner of an open file."""
        os.fchown(fd, *owner)

    def give_at(self, dir_fd: int, name: bytes, owner: tuple[int, int]) -> None:
        """The same for a name in a directory; a symbolic link is not followed."""
        os.chown(name, *owner, dir_fd=dir_fd, follow_symlinks=False)


class Root(Owners):
    """Root of the first user namespace."""

    makes_devices = True
    keeps_attributes = True


class Inner(Owners):
    """Root of a user namespace with many ids in it."""

    def give(self, fd: int, owner: tuple[int, int]) -> None:
        """As of Owners; UnmappedId where the namespace lacks the owner."""
        try:
            super().give(fd, owner)
        except OSError as error:
            raise _explained(error, owner) from error

    def give_at(self, dir_fd: int, name: bytes, owner: tuple[int, int]) -> None:
        """As of Owners; UnmappedId where the namespace lacks the owner."""
        try:
            super().give_at(dir_fd, name, owner)
        except OSError as error:
            raise _explained(error, owner) from error


class Single(Owners):
    """A user who has no id but their own, in a user namespace or outside."""

    def of(self, uid: int, gid: int) -> tuple[int, int] | None:
        """None: everything is the user's."""
        return None

    def directory_mode(self, mode: int) -> int:
        """The mode, with all rights for the user."""
        # Without CAP_DAC_OVERRIDE nothing can be made in a directory of mode 0555.
        return mode | 0o700

    def give(self, fd: int, owner: tuple[int, int]) -> None:
        """Do nothing."""

    def give_at(self, dir_fd: int, name: bytes, owner: tuple[int, int]) -> None:
        """Do nothing."""


def for_process(idmap: IdMap) -> Owners:
    """The policy that fits this process's capabilities and user namespace."""
    if not _has_capability(_CAP_CHOWN):
        return Single(idmap)
    ids = [int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    if ids == [0xFFFF_FFFF]:
        return Root(idmap)
    return Inner(idmap) if sum(ids) > 1 else Single(idmap)


def _explained(error: OSError, owner: tuple[int, int]) -> Exception:
    if error.errno != errno.EINVAL:
        return error
    return UnmappedId(f"owner {owner[0]}:{owner[1]} has no place in this user namespace")


def umask() -> int:
    """The process's umask, without touching it: other threads make files too.

    0o777, "anything may be missing", where /proc does not say (Linux before 4.7).
    """
    return int(_status_field("Umask") or "777", 8)


def _has_capability(number: int) -> bool:
    effective = _status_field("CapEff")
    return os.geteuid() == 0 if effective is None else bool(int(effective, 16) >> number & 1)


def _status_field(name: str) -> str | None:
    # Of this thread: capabilities may differ between threads.
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(name + ":"):
                return line.split()[1]
    return None
