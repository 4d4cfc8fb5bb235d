"""Processes: prctl(2), capabilities, pidfds."""

from __future__ import annotations

import ctypes
import os
import struct

from lamina.kernel import _syscall
from lamina.kernel._syscall import c_int, c_ulong, c_void_p, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

# capabilities(7), by number.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_CAP_HEADER = struct.Struct("=Ii")
_CAP_DATA = struct.Struct("=6I")  # effective, permitted, inheritable; low words, then high

_prctl = _syscall.function("prctl", None, c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_capget = _syscall.function("capget", None, c_void_p, c_void_p)
_capset = _syscall.function("capset", None, c_void_p, c_void_p)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2)."""
    return check(_prctl(option, arg2, arg3, arg4, arg5))


def set_parent_death_signal(signal: int) -> None:
    """Be sent ``signal`` when the thread that made this process ends; reset by setuid exec."""
    prctl(PR_SET_PDEATHSIG, signal)


def set_no_new_privs() -> None:
    """No exec from here on grants more privileges."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def capability_mask(names: Iterable[str]) -> int:
    """The bit mask of capability names, with or without ``CAP_``; ``ALL`` is all of them.

    Raises ValueError for a name that is none.
    """
    mask = 0
    for name in names:
        word = name.upper()
        if word == "ALL":
            return (1 << len(CAPABILITIES)) - 1
        full = word if word.startswith("CAP_") else f"CAP_{word}"
        if full not in CAPABILITIES:
            raise ValueError(f"no such capability: {name}")
        mask |= 1 << CAPABILITIES.index(full)
    return mask


def capget() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of this thread, as bit masks."""
    header = _CAP_HEADER.pack(_LINUX_CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(_CAP_DATA.size)
    check(_capget(header, data))
    e0, p0, i0, e1, p1, i1 = _CAP_DATA.unpack(data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for this thread, from bit masks."""
    masks = (effective, permitted, inheritable)
    low, high = [m & 0xFFFFFFFF for m in masks], [m >> 32 for m in masks]
    header = _CAP_HEADER.pack(_LINUX_CAPABILITY_VERSION_3, 0)
    check(_capset(header, _CAP_DATA.pack(*low, *high)))


def bounding_set() -> int:
    """The capability bounding set as a bit mask."""
    mask = 0
    for number in range(64):
        try:
            held = prctl(PR_CAPBSET_READ, number)
        except OSError:  # past the kernel's last
            break
        mask |= held << number
    return mask


def limit_bounding_set(keep: int) -> None:
    """Drop every capability outside the mask ``keep`` from the bounding set (CAP_SETPCAP)."""
    drop = bounding_set() & ~keep
    for number in range(drop.bit_length()):
        if drop >> number & 1:
            prctl(PR_CAPBSET_DROP, number)


def raise_ambient(mask: int) -> None:
    """Make exactly the capabilities of ``mask`` ambient; they must be permitted and inheritable."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(mask.bit_length()):
        if mask >> number & 1:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)


def pidfd_open(pid: int) -> int:
    """pidfd_open(2): an fd that becomes readable when the process ends."""
    return os.pidfd_open(pid)


def start_time(pid: int) -> int:
    """When ``pid`` began, in clock ticks after boot: with the pid, a process's name for good.

    Field 22 of proc_pid_stat(5). ProcessLookupError when there is no such process.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except FileNotFoundError:
        raise ProcessLookupError(3, os.strerror(3), str(pid)) from None
    return int(line[line.rindex(b")") + 2 :].split()[19])
