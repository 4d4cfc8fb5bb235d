"""What a test may leave behind: nothing.

A snapshot is taken before each test's fixtures and compared after their end. Only what
lies below the session's own directory counts for mounts and loop devices, so that other
work on the machine is no leak of ours. A snapshot costs about 0.1 ms.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

_GRACE = 2.0  # seconds that threads and children just told to end have for it


@dataclass(slots=True)
class Snapshot:
    """Resources of this process, by kind; each item is what identifies it in a message."""

    mounts: set[str] = field(default_factory=set)
    loops: set[str] = field(default_factory=set)
    fds: set[str] = field(default_factory=set)
    threads: set[str] = field(default_factory=set)
    children: set[str] = field(default_factory=set)

    @classmethod
    def take(cls, ground: str) -> Snapshot:
        """What there is now; mounts and loop devices only where ``ground`` is in their path."""
        return cls(
            mounts=_mounts(ground),
            loops=_loops(ground),
            fds=_fds(),
            threads=set(os.listdir("/proc/self/task")),
            children=_children(),
        )

    def beyond(self, before: Snapshot) -> Snapshot:
        """What is here and was not in ``before``."""
        return Snapshot(
            *(getattr(self, k) - getattr(before, k) for k in self.__slots__),
        )

    def add(self, other: Snapshot) -> None:
        """Take what ``other`` has as known."""
        for kind in self.__slots__:
            getattr(self, kind).update(getattr(other, kind))

    def __bool__(self) -> bool:
        return any(getattr(self, kind) for kind in self.__slots__)


def leaked_since(before: Snapshot, ground: str) -> list[str]:
    """One line for each leaked thing, after a grace for what is about to end."""
    leaked = Snapshot.take(ground).beyond(before)
    if leaked:
        gc.collect()  # what hangs on in a cycle is no leak
        leaked = Snapshot.take(ground).beyond(before)
    deadline = time.monotonic() + _GRACE
    while _may_end(leaked) and time.monotonic() < deadline:
        _reap(leaked.children)
        time.sleep(0.01)
        leaked = Snapshot.take(ground).beyond(before)
    return [
        *(f"mount {m}" for m in sorted(leaked.mounts)),
        *(f"loop device {d}" for d in sorted(leaked.loops)),
        *(f"file descriptor {_fd(fd)}" for fd in sorted(leaked.fds, key=int)),
        *(f"thread {t}" for t in sorted(leaked.threads)),
        *(f"child process {_command(pid)}" for pid in sorted(leaked.children, key=int)),
    ]


def _mounts(ground: str) -> set[str]:
    with open("/proc/self/mountinfo", "rb", buffering=0) as table:
        data = table.readall()
    needle = os.fsencode(ground)
    if needle not in data:
        return set()
    found = (line.split(b" ", 5) for line in data.splitlines() if needle in line)
    return {os.fsdecode(f[4] + b" (mount " + f[0] + b")") for f in found}


def _fds() -> set[str]:
    found = set(os.listdir("/proc/self/fd"))
    lowest_free = os.dup(0)  # the listing's own descriptor had this number
    os.close(lowest_free)
    found.discard(str(lowest_free))
    return found


def _loops(ground: str) -> set[str]:
    found = set()
    for device in os.listdir("/sys/block") if os.path.isdir("/sys/block") else ():
        if device.startswith("loop"):
            try:
                with open(f"/sys/block/{device}/loop/backing_file") as file:
                    backing = file.read().strip()
            except OSError:
                continue
            if ground in backing:
                found.add(f"/dev/{device} on {backing}")
    return found


def _children() -> set[str]:
    """Ids of the child processes; asking the kernel for none at all is the fast way out."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            found.update(Path(f"/proc/self/task/{task}/children").read_text().split())
        except FileNotFoundError:
            continue
    return found


def _reap(children: set[str]) -> None:
    """Collect what has ended: orphans of a child that ended are ours too (see subreaper)."""
    for pid in children:
        try:
            os.waitpid(int(pid), os.WNOHANG)
        except ChildProcessError:
            continue


def _may_end(leaked: Snapshot) -> bool:
    """Threads and children told to end, and detached loop devices, need a moment."""
    return bool(leaked.threads or leaked.children or leaked.loops)


def _fd(fd: str) -> str:
    try:
        return f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}"
    except OSError:
        return fd


def _command(pid: str) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        command = b""
    return f"{pid} {command.decode(errors='replace').strip()}"
