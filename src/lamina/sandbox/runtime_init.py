"""The helper that has an OCI runtime run a command: a pid namespace, the runtime, waiting.

Three processes, as in ``init``: the helper; pid 1 of a new pid namespace, which has the runtime
create, start and delete the container; and the command, which the runtime leaves to pid 1. The
runtime itself is gone while the command runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from lamina.errors import CommandNotFound, RuntimeFailed
from lamina.kernel import mount, namespaces
from lamina.sandbox import child, init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    Spec = dict[str, Any]

_CGROUPS = "/sys/fs/cgroup"
_MASKS = ("SigBlk", "SigIgn", "SigCgt")
_NAME_LENGTH = 15
"""Of a process's name, which is cut there (proc_pid_comm(5))."""


def main() -> NoReturn:
    """What a ``helper.Helper`` starts."""
    child.serve(supervise_runtime, int(sys.argv[2]), int(sys.argv[3]))


def supervise_runtime(spec: Spec) -> int:
    """As ``init.supervise_container``; the terminal is as it was at the end."""
    if not spec["terminal"]:
        return init.supervise_container(spec, pid_one)
    from lamina.sandbox import console

    with console.kept():
        return init.supervise_container(spec, pid_one)


def pid_one(spec: Spec) -> int:
    """Have the container created and started, wait for its command, have it deleted."""
    init.die_with_helper(spec)
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.make_private("/", recursive=True)
    mount.mount_new("proc", "/proc")  # where a runtime looks for its own processes
    if not spec["uses_cgroups"]:
        _hide_mixed_cgroups()
    listener = relay = None
    if spec["terminal"]:
        from lamina.sandbox import console

        listener = console.Listener(spec["directory"])
    pid = _create(spec, listener.arguments if listener else [])
    try:
        if listener:
            relay = listener.relay()
        return _run(spec, pid)
    finally:
        _runtime(spec, "delete", "--force", spec["id"])
        if relay:
            relay.wait()


def _hide_mixed_cgroups() -> None:
    """crun refuses a hierarchy that is half version 1, half 2, also if told to make no cgroup."""
    if os.path.exists(f"{_CGROUPS}/unified/cgroup.controllers"):
        try:
            namespaces.unshare(namespaces.CLONE_NEWCGROUP)
            mount.mount_new("cgroup2", _CGROUPS)
        except OSError:
            pass  # it is not ours to mount: then let crun say so


def _create(spec: Spec, arguments: Sequence[str]) -> int:
    """The pid of the container's first process, which waits to become the command."""
    directory = spec["directory"]
    pid_file = f"{directory}/pid"
    words = ("--bundle", directory, "--pid-file", pid_file, *arguments, spec["id"])
    if _runtime(spec, "create", *words):
        if spec["not_found"]:
            raise CommandNotFound(*spec["not_found"])
        raise RuntimeFailed(_complaint(spec))
    with open(pid_file) as file:
        return int(file.read())


def _run(spec: Spec, pid: int) -> int:
    """Start the command; its exit status."""
    command = _Command(pid)
    if _runtime(spec, "start", spec["id"]):
        raise RuntimeFailed(_complaint(spec))
    status = child.supervise(
        pid,
        init.passed_on(spec["on_terminal"]),
        send=command.send,
        at_end=command.look,
    )
    if status != 128 + signal.SIGKILL and not command.began(spec["argv"][0]):
        raise CommandNotFound(f"{spec['argv'][0]}: can't be executed", 126)
    return command.status(status)


class _Command:
    """The container's first process: at first the runtime's, which then executes the command."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._first_name = self._last_name = _name_of(pid)
        self._ended_by = 0

    def look(self) -> None:
        """Note what it was in the end: execve(2) changes its name."""
        self._last_name = _name_of(self._pid)

    def began(self, program: str) -> bool:
        """Whether it was executed; one that ended as the runtime's process was not."""
        return self._last_name != self._first_name or (
            os.path.basename(program)[:_NAME_LENGTH] == self._first_name
        )

    def send(self, pid: int, number: int) -> None:
        """Send a signal. What a first process does not expect the kernel keeps from it, even if
        it would end any other (pid_namespaces(7)): one that would is killed instead.
        """
        if number not in (signal.SIGKILL, signal.SIGWINCH) and not _expects(pid, number):
            self._ended_by, number = number, signal.SIGKILL
        os.kill(pid, number)

    def status(self, found: int) -> int:
        """The exit status, as of the signal that was sent."""
        was_killed = found == 128 + signal.SIGKILL
        return 128 + self._ended_by if self._ended_by and was_killed else found


def _expects(pid: int, number: int) -> bool:
    """Whether the process blocks, ignores or handles the signal (proc_pid_status(5))."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.rstrip("\n").split(":", 1) for line in file)
    return any(int(fields[mask], 16) >> (number - 1) & 1 for mask in _MASKS)


def _name_of(pid: int) -> str:
    """What the process is called; of one that has ended and was not waited for, what it was."""
    with open(f"/proc/{pid}/comm") as file:
        return file.read().rstrip("\n")


def _complaint(spec: Spec) -> str:
    """What the runtime wrote to its log last."""
    text = "it failed without a word"
    with open(f"{spec['directory']}/log") as log:
        for line in log:
            try:
                text = json.loads(line)["msg"]
            except (ValueError, KeyError):
                text = line.strip() or text
    return f"{os.path.basename(spec['tool'][0])}: {text}"


def _runtime(spec: Spec, *words: str) -> int:
    """Call the runtime with these words after its options; its exit status."""
    argv = [*spec["tool"], *words]
    pid = os.fork()
    if pid == 0:
        try:
            child.reset_signals(spec["ignored"])
            os.execve(argv[0], argv, {"PATH": child.DEFAULT_PATH})
        finally:
            os._exit(127)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
