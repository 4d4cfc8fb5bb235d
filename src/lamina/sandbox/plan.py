"""What of this machine a fork shows as it is, read-only, or as a copy of its own.

Root forks every file system: an overlay over ``/``, one over each other mount, each with its
own upper directory. A user namespace can't do that: overlayfs refuses a lower directory with
mounts below it that came from outside. There everything is bound read-only, and the places
that the user could write to (the command's directory, home, /tmp...) are forked one by one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lamina.kernel import mountinfo
from lamina.kernel.mountinfo import MountPoint

AS_IT_IS = (b"/proc", b"/sys", b"/dev")
"""Shown as they are, with all that is mounted below them."""

_KERNEL_FILE_SYSTEMS = frozenset(
    b"autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl "
    b"hugetlbfs mqueue nsfs proc pstore rpc_pipefs securityfs selinuxfs sysfs tracefs".split()
)
_SCRATCH = (b"/tmp", b"/var/tmp")


class Point(NamedTuple):
    """A directory of the machine that gets its own upper layer in the fork."""

    target: bytes
    """Its absolute path."""
    number: int
    """Of its directory in the fork's work directory, with ``upper`` and ``work`` in it."""
    reported: bool = True
    """False for a scratch place: what is written there goes with the fork."""
    skeleton: bool = False
    """Mounts lie below it, and this process may not look past them (``skeleton.py``)."""


class Plan:
    """The mounts of a fork, in order. ``steps`` are for the helper (``forked.py``):

    ``("overlay", target, number)``, ``("skeleton", target, number)``,
    ``("bind", target, recursive, read-only)`` and ``("hide", target)``.
    """

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.steps: list[tuple[object, ...]] = []

    def fork(self, target: bytes, *, reported: bool = True, skeleton: bool = False) -> None:
        """Give the directory ``target`` its own upper layer."""
        number = len(self.points)
        self.points.append(Point(target, number, reported, skeleton))
        self.steps.append(("skeleton" if skeleton else "overlay", target, number))

    def bind(self, target: bytes, *, recursive: bool = False, read_only: bool = False) -> None:
        """Show what is mounted at ``target``."""
        self.steps.append(("bind", target, recursive, read_only))

    def hide(self, target: bytes) -> None:
        """Show an empty directory in place of ``target``."""
        self.steps.append(("hide", target))


def whole_machine(table: Sequence[MountPoint]) -> Plan:
    """Fork ``/`` and every file system mounted in it."""
    plan = Plan()
    plan.fork(b"/")
    for target in AS_IT_IS:
        plan.bind(target, recursive=True)
    for point in _visible(table):
        if point.target == b"/" or _is_below(point.target, AS_IT_IS):
            continue
        if point.fstype in _KERNEL_FILE_SYSTEMS or point.read_only:
            plan.bind(point.target)
        elif not os.path.isdir(point.target):
            plan.bind(point.target, read_only=True)
        else:
            plan.fork(point.target)
    return plan


def directory_alone(directory: bytes, table: Sequence[MountPoint]) -> Plan:
    """Fork ``directory`` and what is mounted below it; the rest is read-only.

    Temporary directories are writable, and what is written there is thrown away.
    """
    plan = _read_only_machine()
    below = [p.target for p in _visible(table) if _is_below(p.target, AS_IT_IS) is False]
    for scratch in _SCRATCH:
        inside = _is_below(scratch, (directory,)) or scratch == directory
        if not inside and os.path.isdir(scratch):
            plan.fork(scratch, reported=False)
            for target in below:
                if _is_below(target, (scratch,)) and not _is_below(target, (directory,)):
                    plan.bind(target, read_only=True)
    plan.fork(directory)
    for target in below:
        if target != directory and _is_below(target, (directory,)):
            plan.fork(target) if os.path.isdir(target) else plan.bind(target, read_only=True)
    return plan


def places_of_user(places: Iterable[bytes], table: Sequence[MountPoint]) -> Plan:
    """Fork what this process may write to on the way to any of ``places``.

    The rest is read-only.
    """
    ways = (_writable_on_the_way(os.path.realpath(place)) for place in places)
    return _fork_chosen({path: True for way in ways for path in way}, table)


def directory_of_user(
    directory: bytes, table: Sequence[MountPoint], scratch: Iterable[bytes]
) -> Plan:
    """Fork ``directory``, and ``scratch`` places to be thrown away; the rest is read-only."""
    paths = [os.path.realpath(path) for path in scratch]
    chosen = {path: False for path in paths if os.access(path, os.W_OK | os.X_OK)}
    return _fork_chosen({**chosen, directory: True}, table)


def _fork_chosen(chosen: dict[bytes, bool], table: Sequence[MountPoint]) -> Plan:
    """Fork each path as a user can; the value says whether what changes there is reported."""
    plan = _read_only_machine()
    mounted = [p.target for p in _visible(table)]
    for path in sorted(chosen):
        known = any(point.target == path for point in plan.points)
        if not known and not _is_below(path, AS_IT_IS):
            _fork_as_user(plan, path, mounted, reported=chosen[path])
    return plan


def _writable_on_the_way(path: bytes) -> Iterator[bytes]:
    """The directories that have to be forked for a user to write to ``path`` as it may now.

    A directory of one's own is copied up into the layer of the directory it is in. Another's
    can't be, in a user namespace that does not know the owner: if it is writable (``/tmp``, a
    group's directory) it needs a layer of its own.
    """
    covered = False
    parts = [part for part in path.split(b"/") if part]
    for count in range(1, len(parts) + 1):
        prefix = b"/" + b"/".join(parts[:count])
        try:
            status = os.stat(prefix)
        except OSError:
            return
        if not stat.S_ISDIR(status.st_mode):
            return
        if covered and (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid()):
            continue
        covered = os.access(prefix, os.W_OK | os.X_OK)
        if covered:
            yield prefix


def _fork_as_user(plan: Plan, path: bytes, mounted: list[bytes], *, reported: bool) -> None:
    """Fork a directory; one with mounts below it piece by piece, its own files read-only."""
    if not any(target != path and _is_below(target, (path,)) for target in mounted):
        plan.fork(path, reported=reported)
        return
    plan.fork(path, reported=reported, skeleton=True)
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.is_symlink():
                continue
            if entry.is_dir() and os.access(entry.path, os.W_OK | os.X_OK):
                _fork_as_user(plan, entry.path, mounted, reported=reported)
            else:
                plan.bind(entry.path, recursive=True, read_only=True)


def _read_only_machine() -> Plan:
    plan = Plan()
    plan.bind(b"/", recursive=True, read_only=True)
    for target in AS_IT_IS:
        plan.bind(target, recursive=True)
    return plan


def _visible(table: Sequence[MountPoint]) -> list[MountPoint]:
    """The topmost mount of each target that can be reached, parents first."""
    found = []
    for target in sorted({point.target for point in table}):
        try:
            point = mountinfo.mount_at(target)
        except OSError:
            continue
        if point is not None:
            found.append(point)
    return found


def _is_below(path: bytes, tops: Iterable[bytes]) -> bool:
    """Whether ``path`` is one of ``tops`` or lies below one."""
    return any(path == top or path.startswith(top.rstrip(b"/") + b"/") for top in tops)
