"""User and group ids inside a user namespace, and what they are on the host."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from lamina.errors import UnmappedId

SUBUID = Path("/etc/subuid")
SUBGID = Path("/etc/subgid")


class _Range(NamedTuple):
    container: int
    host: int
    size: int


class IdRange(_Range):
    """``size`` ids from ``container`` on are, on the host, those from ``host`` on."""

    __slots__ = ()

    def __new__(cls, container: int, host: int, size: int) -> Self:
        """Refuses a range of no ids, or of negative ones, with ValueError."""
        if min(container, host) < 0 or size < 1:
            raise ValueError(f"not a range of ids: {container} {host} {size}")
        return super().__new__(cls, container, host, size)

    def __str__(self) -> str:
        """A line of /proc/PID/uid_map."""
        return f"{self.container} {self.host} {self.size}"


class _Maps(NamedTuple):
    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]


class IdMap(_Maps):
    """The two maps of a user namespace. Without ranges it is the identity, and false.

    Ids outside all ranges of a map that has any raise UnmappedId.
    """

    __slots__ = ()

    def __new__(cls, uids: tuple[IdRange, ...] = (), gids: tuple[IdRange, ...] = ()) -> Self:
        """Refuses ranges that overlap, or of one kind of ids alone, with ValueError."""
        if bool(uids) != bool(gids):
            raise ValueError("an id map has ranges for both users and groups, or for neither")
        for ranges in (uids, gids):
            _refuse_overlap([(r.container, r.size) for r in ranges])
            _refuse_overlap([(r.host, r.size) for r in ranges])
        return super().__new__(cls, uids, gids)

    def __bool__(self) -> bool:
        return bool(self.uids)

    @classmethod
    def identity(cls) -> IdMap:
        """Every id is itself."""
        return cls()

    @classmethod
    def for_user(
        cls, user: str | None = None, *, subuid: Path = SUBUID, subgid: Path = SUBGID
    ) -> IdMap:
        """The map of a rootless ``user`` (a name; by default, who runs this).

        Root inside is the user; the ids from 1 on are the ranges that subuid(5) and
        subgid(5) grant by name or uid, if any.
        """
        entry = pwd.getpwnam(user) if user is not None else _current_user()
        uid, gid = entry.pw_uid, entry.pw_gid
        return cls(
            (IdRange(0, uid, 1), *_subordinate(subuid, entry.pw_name, uid)),
            (IdRange(0, gid, 1), *_subordinate(subgid, entry.pw_name, uid)),
        )

    @classmethod
    def of_process(cls, pid: int | str = "self") -> IdMap:
        """The map of a process's user namespace, to the ids of the one above it."""
        return cls(_ranges(Path(f"/proc/{pid}/uid_map")), _ranges(Path(f"/proc/{pid}/gid_map")))

    @property
    def root(self) -> tuple[int, int]:
        """(uid, gid) on the host of root inside."""
        return self.to_host(0, 0)

    def to_host(self, uid: int, gid: int) -> tuple[int, int]:
        """Host ids of (uid, gid) inside."""
        if not self.uids:
            return uid, gid
        return _up(self.uids, uid, "user"), _up(self.gids, gid, "group")

    def to_container(self, uid: int, gid: int) -> tuple[int, int]:
        """Ids inside of (uid, gid) on the host."""
        if not self.uids:
            return uid, gid
        return _down(self.uids, uid, "user"), _down(self.gids, gid, "group")


def _ranges(path: Path) -> tuple[IdRange, ...]:
    return tuple(IdRange(*map(int, line.split())) for line in path.read_text().splitlines())


def _up(ranges: tuple[IdRange, ...], inside: int, kind: str) -> int:
    for r in ranges:
        if 0 <= inside - r.container < r.size:
            return r.host + inside - r.container
    raise UnmappedId(f"{kind} id {inside} has no place on the host in this id map")


def _down(ranges: tuple[IdRange, ...], outside: int, kind: str) -> int:
    for r in ranges:
        if 0 <= outside - r.host < r.size:
            return r.container + outside - r.host
    raise UnmappedId(f"{kind} id {outside} of the host has no place in this id map")


def _refuse_overlap(ranges: Iterable[tuple[int, int]]) -> None:
    end = 0
    for start, size in sorted(ranges):
        if start < end:
            raise ValueError(f"id {start} is in two ranges of an id map")
        end = start + size


def _current_user() -> pwd.struct_passwd:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return pwd.struct_passwd((str(uid), "x", uid, os.getegid(), "", "/", "/bin/sh"))


def _subordinate(path: Path, name: str, uid: int) -> list[IdRange]:
    """The ranges of ``path`` granted to the user, laid end to end from id 1 inside."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    ranges: list[IdRange] = []
    inside = 1
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) != 3 or fields[0] not in (name, str(uid)):
            continue
        if not (fields[1].isdigit() and fields[2].isdigit() and int(fields[2])):
            continue
        ranges.append(IdRange(inside, int(fields[1]), int(fields[2])))
        inside += int(fields[2])
    return ranges
