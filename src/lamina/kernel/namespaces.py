"""Namespaces: one function a system call, and the maps of user namespaces."""

from __future__ import annotations

import os

from lamina.kernel import _syscall
from lamina.kernel._syscall import AnyPath, c_char_p, c_int, c_size_t, check, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina.kernel.idmap import IdMap, IdRange

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_IDENTITY_MAP = [b"0", b"0", b"4294967295"]

_unshare = _syscall.function("unshare", None, c_int)
_setns = _syscall.function("setns", None, c_int, c_int)
_pivot_root = _syscall.function("pivot_root", None, c_char_p, c_char_p)
_sethostname = _syscall.function("sethostname", None, c_char_p, c_size_t)


def unshare(flags: int) -> None:
    """unshare(2). EINVAL for CLONE_NEWUSER in a process with several threads."""
    check(_unshare(flags))


def setns(fd: int, flags: int = 0) -> None:
    """setns(2): join the namespace of ``fd``, or those in ``flags`` of a pidfd."""
    check(_setns(fd, flags))


def pivot_root(new_root: AnyPath, put_old: AnyPath) -> None:
    """pivot_root(2). With both ``"."`` the old root ends up stacked on the new one."""
    check(_pivot_root(encode(new_root), encode(put_old)), new_root)


def sethostname(name: str) -> None:
    """sethostname(2): at most 64 bytes."""
    raw = encode(name)
    check(_sethostname(raw, len(raw)), name)


def in_user_namespace() -> bool:
    """Whether this is not the first user namespace (as runc asks: its map is not ``0 0 max``)."""
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return file.read().split() != _IDENTITY_MAP
    except FileNotFoundError:  # a kernel without user namespaces
        return False


def mount_namespace_id(pid: int | str = "self") -> int:
    """The inode number which names the mount namespace of ``pid``."""
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def write_id_maps(pid: int, idmap: IdMap) -> None:
    """Give the new user namespace of ``pid`` its maps, from the parent namespace.

    What an ordinary user may map, its own id alone, is written directly, with setgroups(2)
    refused inside as the kernel demands (user_namespaces(7)). More goes through newuidmap(1)
    and newgidmap(1). Raises PermissionError, or FileNotFoundError without those tools.
    """
    uids, gids = idmap.uids, idmap.gids
    if os.geteuid() == 0:
        _write_map(f"/proc/{pid}/uid_map", uids)
        _write_map(f"/proc/{pid}/gid_map", gids)
    elif _own_only(uids, os.geteuid()) and _own_only(gids, os.getegid()):
        write_own_maps(pid, uids, gids)
    else:
        _run_helper("newuidmap", pid, uids)
        _run_helper("newgidmap", pid, gids)


def write_own_maps(pid: int | str, uids: Sequence[IdRange], gids: Sequence[IdRange]) -> None:
    """Maps of single ids, which need no privilege; also ``"self"`` from inside."""
    with open(f"/proc/{pid}/setgroups", "wb", buffering=0) as file:
        file.write(b"deny")
    _write_map(f"/proc/{pid}/uid_map", uids)
    _write_map(f"/proc/{pid}/gid_map", gids)


def _own_only(ranges: Sequence[IdRange], own: int) -> bool:
    return len(ranges) == 1 and ranges[0].host == own and ranges[0].size == 1


def _write_map(path: str, ranges: Sequence[IdRange]) -> None:
    """All lines in one write(2): the kernel takes no second."""
    text = "".join(f"{r}\n" for r in ranges)
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())


def _run_helper(tool: str, pid: int, ranges: Sequence[IdRange]) -> None:
    argv = [tool, str(pid), *(word for r in ranges for word in str(r).split())]
    child = os.posix_spawnp(tool, argv, os.environ)
    _, status = os.waitpid(child, 0)
    if status:
        raise PermissionError(1, f"{tool} refused the map: {' '.join(argv[2:])}", tool)
