"""The helper that runs a command in a mounted root: namespaces, mounts, pid 1.

Three processes: the helper itself, which makes the namespaces and passes signals on; pid 1 of
the new pid namespace, which mounts, reaps and passes signals on; and the command. Each dies
with the one before it, and the kernel kills a pid namespace with its pid 1.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

from lamina.errors import CommandNotFound
from lamina.kernel import namespaces, process
from lamina.sandbox import child, inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Spec = dict[str, Any]

_NAMESPACES = (
    namespaces.CLONE_NEWNS
    | namespaces.CLONE_NEWIPC
    | namespaces.CLONE_NEWUTS
    | namespaces.CLONE_NEWCGROUP
)


def main() -> NoReturn:
    """What a ``helper.Helper`` starts."""
    child.serve(lambda spec: supervise_container(spec, pid_one), int(sys.argv[2]), int(sys.argv[3]))


def supervise_container(spec: Spec, first: Callable[[Spec], int]) -> int:
    """Make the pid namespace, start ``first`` as its pid 1, and wait for it."""
    die_with(spec["caller"], child.END)
    if spec["uid_map"]:
        enter_user_namespace(spec["uid_map"], spec["gid_map"])
        die_with(spec["caller"], child.END)
    leave_terminal(spec["on_terminal"])
    namespaces.unshare(namespaces.CLONE_NEWPID)
    spec["alive"], alive = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        run_in_child(spec, first)
    os.close(spec["errors"])
    return child.supervise(pid, passed_on(spec["on_terminal"]))


def pid_one(spec: Spec) -> int:
    """Pid 1: set up the container, start the command, reap until it ends."""
    die_with_helper(spec)
    namespaces.unshare(_NAMESPACES | (namespaces.CLONE_NEWNET if spec["private_network"] else 0))
    if spec["private_network"]:
        from lamina.kernel import network

        network.loopback_up()
    if spec["hostname"] is not None:
        namespaces.sethostname(spec["hostname"])
    inside.enter_root(spec)
    pid = os.fork()
    if pid == 0:
        run_in_child(spec, become_command)
    os.close(spec["errors"])
    return child.supervise(pid, passed_on(spec["on_terminal"]))


def become_command(spec: Spec) -> int:
    """The command's own process: session, working directory, rights, exec."""
    if not spec["on_terminal"]:
        os.setsid()
    os.umask(0o022)
    enter_directory(spec["cwd"])
    drop_rights(spec)
    child.reset_signals(spec["ignored"])
    child.execute(spec["argv"], spec["env"])


def run_in_child(spec: Spec, work: Any) -> NoReturn:
    """The rest of a forked child's life."""
    try:
        status = work(spec)
    except BaseException as error:
        child.report(spec["errors"], error)
        os._exit(error.exit_code if isinstance(error, CommandNotFound) else 125)
    os._exit(status)


def die_with(caller: int, number: int) -> None:
    """Be sent ``number`` when the caller ends, also if it has ended already."""
    process.set_parent_death_signal(number)
    if os.getppid() != caller:
        os._exit(128 + signal.SIGKILL)


def die_with_helper(spec: Spec) -> None:
    """For pid 1: be killed when the helper ends, also if it has ended already."""
    process.set_parent_death_signal(signal.SIGKILL)
    os.set_blocking(spec["alive"], False)
    try:
        os.read(spec["alive"], 1)
    except BlockingIOError:
        os.close(spec["alive"])
    else:  # end of file: the helper was gone before we could ask to die with it
        os._exit(128 + signal.SIGKILL)


def leave_terminal(on_terminal: bool) -> None:
    """Off a terminal, leave the caller's session, whose terminal then sends us nothing.

    On one, the command shares the caller's session and group, so that job control and Ctrl-C
    work as for any command.
    """
    if not on_terminal:
        os.setsid()
        return
    for number in child.FROM_TERMINAL:
        signal.signal(number, signal.SIG_IGN)


def passed_on(on_terminal: bool) -> list[int]:
    """Which signals to pass on; what a terminal sends reaches the command by itself."""
    return [n for n in child.FORWARDED if not (on_terminal and n in child.FROM_TERMINAL)]


def enter_user_namespace(uid_map: list[str], gid_map: list[str]) -> None:
    """Become root of a new user namespace with these maps (lines of uid_map).

    Several lines are for newuidmap(1), which has to run outside: in a child, forked before.
    """
    own_only = len(uid_map) == len(gid_map) == 1
    go, ready = os.pipe()
    mapper = 0 if own_only else os.fork()
    if not own_only and mapper == 0:
        os.close(ready)
        if os.read(go, 1):
            namespaces.write_maps(os.getppid(), uid_map, gid_map)
        os._exit(0)
    os.close(go)
    try:
        namespaces.unshare(namespaces.CLONE_NEWUSER)
    except OSError as error:
        raise OSError(error.errno, "user namespace") from None
    if own_only:
        namespaces.write_own_maps("self", uid_map, gid_map)
    else:
        os.write(ready, b"x")
        _, status = os.waitpid(mapper, 0)
        if status:
            raise PermissionError(1, "newuidmap or newgidmap refused the id map", "/etc/subuid")
    os.close(ready)


def enter_directory(path: str) -> None:
    """Make ``path`` the working directory; if missing it is created, root's, as Docker does."""
    try:
        os.chdir(path)
    except FileNotFoundError:
        os.makedirs(path, 0o755, exist_ok=True)
        os.chdir(path)


def drop_rights(spec: Spec) -> None:
    """Capabilities, groups, user: in the order in which each still may."""
    keep = spec["capabilities"]
    process.limit_bounding_set(keep)
    uid, gid = spec["uid"], spec["gid"]
    try:
        if _may_set_groups():
            os.setgroups(spec["groups"])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        why = error.strerror
        if error.errno == errno.EINVAL:
            why = (
                "no such id in this user namespace; an ordinary user has more than one with "
                "ranges in /etc/subuid and /etc/subgid, and newuidmap (Debian: uidmap)"
            )
        raise OSError(error.errno, why, f"user {uid}:{gid}") from None
    _, permitted, _ = process.capget()
    if uid == 0:
        process.capset(keep & permitted, keep & permitted, 0)
    if spec["no_new_privs"]:
        process.set_no_new_privs()


def _may_set_groups() -> bool:
    """Not in a user namespace of one id that an ordinary user made (user_namespaces(7))."""
    try:
        with open("/proc/self/setgroups", "rb") as file:
            return file.read().strip() != b"deny"
    except FileNotFoundError:  # a root without a proc
        return True
