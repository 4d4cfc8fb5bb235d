"""What changed between a tree and what lies below it, as ``docker diff`` says it.

Metadata decide: mode, owner, size, modification time, type, link target, device and extended
attributes. No file is read. Of a directory size and time don't count: they say no more than that
something in it did. A directory is listed as changed when it was, or when something in it was;
the top never is. A directory that something else took the place of is one change, as is a
directory that is gone: what was in it is not listed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from lamina.archive.descent import Tree
from lamina.archive.lookup import Found, Lookup
from lamina.archive.stack import Node, NodeKind, walk
from lamina.archive.whiteout import PLAIN, View
from lamina.archive.xattrs import DEFAULT_POLICY, XattrPolicy
from lamina.kernel.path import fd_path

_Identity: TypeAlias = tuple[int, int]


_BLOCK = 1 << 20


class Kind(StrEnum):
    """How a path changed; the value is what ``docker diff`` prints."""

    MODIFIED = "C"
    ADDED = "A"
    DELETED = "D"


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One path that changed: absolute, as ``b"/etc/motd"``. Ordered by path, bytewise."""

    path: bytes
    kind: Kind

    def __str__(self) -> str:
        return f"{self.kind} {os.fsdecode(self.path)}"


def changes_from_uppers(
    uppers: Sequence[Tree],
    lowers: Sequence[Tree],
    fmt: View,
    *,
    policy: XattrPolicy = DEFAULT_POLICY,
) -> list[Change]:
    """What ``uppers`` do to ``lowers`` (layer directories of one format, each topmost first).

    Time is proportional to the uppers: lower layers are only asked for names that uppers have,
    and listed only where an opaque directory of the uppers hides one of theirs. A file that was
    copied up and is as before is no change; neither is a whiteout of a name that was not there.
    Two names that are one file in the uppers and were not, or the other way round, are compared
    where both are in the uppers. Sorted by path. Raises OSError.
    """
    return _compare(uppers, lowers, fmt, policy, cut=False)


def changes_between(
    new: Tree,
    old: Tree | None,
    *,
    policy: XattrPolicy = DEFAULT_POLICY,
    contents: bool = False,
) -> list[Change]:
    """How the plain tree ``new`` differs from ``old``; without ``old`` all of it was added.

    Times are compared at the precision that both have: where one has no nanoseconds, by seconds.
    The same device and inode is the same file. Unchanged names that are hard links of each other
    in one tree only are changes (all but the first). Files of one size and time are taken for the
    same, or read for ``contents``. Sorted by path. Raises OSError.
    """
    lowers = [] if old is None else [old]
    return _compare([new], lowers, PLAIN, policy, cut=True, contents=contents)


def _compare(
    new: Sequence[Tree],
    old: Sequence[Tree],
    fmt: View,
    policy: XattrPolicy,
    *,
    cut: bool,
    contents: bool = False,
) -> list[Change]:
    with Lookup(old, fmt) as lowers, closing(walk(new, fmt)) as nodes:
        return changes_of(nodes, lowers, fmt, policy, cut=cut, contents=contents)


class Lowers(Protocol):
    """What is compared with, seen from one directory of it, as :class:`Lookup` has it."""

    def find(self, name: bytes) -> Found | None:
        """The entry of that name that shows here, or None."""

    def names(self) -> list[bytes]:
        """All names that show here."""

    def enter(self, name: bytes) -> None:
        """Go down. Where no directory of that name shows, nothing shows from there on."""

    def leave(self) -> None:
        """Go back up."""


def changes_of(
    nodes: Iterable[Node],
    lowers: Lowers,
    fmt: View,
    policy: XattrPolicy = DEFAULT_POLICY,
    *,
    cut: bool = False,
    contents: bool = False,
) -> list[Change]:
    """:func:`changes_from_uppers` for whatever gives nodes in the order of :func:`walk`.

    With ``cut`` they hide all that is in ``lowers``. ``contents`` needs descriptors in both.
    """
    comparison = _Comparison(lowers, fmt, policy, contents)
    for node in nodes:
        comparison.close_to(node.depth)
        if node.depth == 0:
            comparison.open(node, Kind.MODIFIED, cut=cut)
        else:
            comparison.visit(node)
    comparison.close_to(0)
    return comparison.changes()


@dataclass(slots=True)
class _Level:
    """A directory on the way to where the walk is."""

    path: bytes
    listed: bool
    """Whether the directory itself is a change already."""
    before: int
    """How many changes were known before what is in it."""
    cut: bool
    """Whether what the lower layers have here is hidden."""
    gone: set[bytes] = field(default_factory=set)
    """Where it is hidden: the lower names not met again so far."""


class _Comparison:
    def __init__(self, lowers: Lowers, fmt: View, policy: XattrPolicy, contents: bool) -> None:
        self.contents = contents
        self.lowers = lowers
        self.fmt = fmt
        self.policy = policy
        self.levels: list[_Level] = []
        self.found: list[Change] = []
        self.links: list[tuple[bytes, _Identity, _Identity]] = []

    def changes(self) -> list[Change]:
        """All that was found, sorted, with the directories above changed links."""
        relinked = changed_links(self.links)
        if relinked:
            known = {change.path for change in self.found}
            for path in relinked:
                while path and path not in known:
                    known.add(path)
                    self.found.append(Change(path, Kind.MODIFIED))
                    path = path.rpartition(b"/")[0]
        self.found.sort()
        return self.found

    def open(self, node: Node, kind: Kind | None, *, cut: bool) -> None:
        """Go into a directory, which is listed as ``kind`` already, or not."""
        if node.depth > 0:
            self.lowers.enter(node.name)
        cut = cut or node.opaque
        gone = set(self.lowers.names()) if cut else set()
        self.levels.append(_Level(node.path, kind is not None, len(self.found), cut, gone))

    def close_to(self, depth: int) -> None:
        """Leave the directories whose content is all seen."""
        while len(self.levels) > depth:
            level = self.levels.pop()
            prefix = b"/%b/" % level.path if level.path else b"/"
            self.found += [Change(prefix + name, Kind.DELETED) for name in level.gone]
            if not level.listed and len(self.found) > level.before:
                self.found.append(Change(b"/" + level.path, Kind.MODIFIED))
            if self.levels:
                self.lowers.leave()

    def visit(self, node: Node) -> None:
        """Compare one name with what the lower layers show."""
        level = self.levels[-1]
        lower = self.lowers.find(node.name)
        kind: Kind | None = None
        if node.kind is NodeKind.WHITEOUT:
            kind = Kind.DELETED if lower else None
            level.gone.discard(node.name)
        elif lower is None:
            kind = Kind.ADDED
        else:
            level.gone.discard(node.name)
            kind = None if self.same(node, lower) else Kind.MODIFIED
        if kind is not None:
            self.found.append(Change(b"/" + node.path, kind))
        if node.is_directory:
            self.open(node, kind, cut=level.cut)

    def same(self, node: Node, lower: Found) -> bool:
        """Whether an entry is as it was; a link structure is left to :func:`changed_links`."""
        new, old = node.status, lower.status
        assert new is not None
        new_id, old_id = (new.st_dev, new.st_ino), (old.st_dev, old.st_ino)
        directory = stat.S_ISDIR(new.st_mode)
        if new_id == old_id:
            return True
        if not same_status(new, old):
            return False
        if stat.S_ISLNK(new.st_mode) and node.readlink() != lower.readlink(node.name):
            return False
        attributes = node.attributes(self.fmt, self.policy)
        if attributes != lower.attributes(node.name, self.fmt, self.policy, node.path):
            return False
        if self.contents and stat.S_ISREG(new.st_mode):
            here, there = (fd_path(fd, node.name) for fd in (node.dir_fd, lower.dir_fd))
            if not _same_bytes(here, there):
                return False
        if not directory and (new.st_nlink > 1 or old.st_nlink > 1):
            self.links.append((b"/" + node.path, new_id, old_id))
        return True


def same_status(new: os.stat_result, old: os.stat_result) -> bool:
    """Whether two files are the same as far as stat(2) tells, links and change times apart."""
    if new.st_mode != old.st_mode or new.st_uid != old.st_uid or new.st_gid != old.st_gid:
        return False
    if stat.S_ISDIR(new.st_mode):
        return True
    if new.st_size != old.st_size:
        return False
    if (stat.S_ISCHR(new.st_mode) or stat.S_ISBLK(new.st_mode)) and new.st_rdev != old.st_rdev:
        return False
    return same_time(new.st_mtime_ns, old.st_mtime_ns)


def _same_bytes(one: bytes, other: bytes) -> bool:
    with open(one, "rb") as left, open(other, "rb") as right:
        while data := left.read(_BLOCK):
            if right.read(len(data)) != data:
                return False
        return not right.read(1)


def same_time(new_ns: int, old_ns: int) -> bool:
    """Whether two times are the same at the precision both have (a tar may cut nanoseconds)."""
    if new_ns == old_ns:
        return True
    second = 1_000_000_000
    return (not new_ns % second or not old_ns % second) and new_ns // second == old_ns // second


def changed_links(files: list[tuple[bytes, _Identity, _Identity]]) -> list[bytes]:
    """Paths of files, else unchanged, that are one with other files than before.

    ``files`` are (path, new identity, old identity). Of names that are one file, each is taken to
    be a link to the first; a name whose first is another one than before has changed.
    """
    first_new: dict[_Identity, bytes] = {}
    first_old: dict[_Identity, bytes] = {}
    return [
        path
        for path, new, old in sorted(files)
        if first_new.setdefault(new, path) != first_old.setdefault(old, path)
    ]
