"""Namespaces: one function a system call, and the maps of user namespaces."""

from __future__ import annotations

import os

from lamina.kernel import _syscall
from lamina.kernel._syscall import AnyPath, c_char_p, c_int, c_size_t, check, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina.kernel.idmap import IdMap

CLONE_NEWTIME = 0x00000080
CLONE_FS = 0x00000200
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
    write_maps(pid, [str(r) for r in idmap.uids], [str(r) for r in idmap.gids])


def write_maps(pid: int, uid_map: Sequence[str], gid_map: Sequence[str]) -> None:
    """As :func:`write_id_maps`, from the lines of the two files."""
    if os.geteuid() == 0:
        _write_map(f"/proc/{pid}/uid_map", uid_map)
        _write_map(f"/proc/{pid}/gid_map", gid_map)
    elif _is_own(uid_map, os.geteuid()) and _is_own(gid_map, os.getegid()):
        write_own_maps(pid, uid_map, gid_map)
    else:
        _run_helper("newuidmap", pid, uid_map)
        _run_helper("newgidmap", pid, gid_map)


def write_own_maps(pid: int | str, uid_map: Sequence[str], gid_map: Sequence[str]) -> None:
    """Maps of one's own ids alone, which need no privilege; also ``"self"``, from inside."""
    with open(f"/proc/{pid}/setgroups", "wb", buffering=0) as file:
        file.write(b"deny")
    _write_map(f"/proc/{pid}/uid_map", uid_map)
    _write_map(f"/proc/{pid}/gid_map", gid_map)


def _is_own(lines: Sequence[str], own: int) -> bool:
    return len(lines) == 1 and lines[0].split()[1:] == [str(own), "1"]


def _write_map(path: str, lines: Sequence[str]) -> None:
    """All lines in one write(2): the kernel takes no second."""
    with open(path, "wb", buffering=0) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def _run_helper(tool: str, pid: int, lines: Sequence[str]) -> None:
    argv = [tool, str(pid), *(word for line in lines for word in line.split())]
    child = os.posix_spawnp(tool, argv, os.environ)
    _, status = os.waitpid(child, 0)
    if status:
        raise PermissionError(1, f"{tool} refused the map: {' '.join(argv[2:])}", tool)
