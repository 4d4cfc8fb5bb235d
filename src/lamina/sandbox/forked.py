"""The helper that runs a command on a fork of this machine: mounts, then the command.

Mount namespace (and user namespace, for an ordinary user) are its own; processes, network, users
and the terminal are the caller's. The helper stays, as the reaper of all that the command starts:
when the command has ended, what it left running is killed, so that the fork is at rest.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

from lamina.errors import MountError
from lamina.kernel import mount, namespaces, process
from lamina.sandbox import child, init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Spec = dict[str, Any]

_OPTIONS = (("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow"))


def main() -> NoReturn:
    """What a ``helper.Helper`` starts."""
    child.serve(supervise_fork, int(sys.argv[2]), int(sys.argv[3]))


def supervise_fork(spec: Spec) -> int:
    """Make the fork, run the command on it, and end what it left running."""
    if spec["uid_map"]:
        init.enter_user_namespace(spec["uid_map"], spec["gid_map"])
    init.die_with(spec["caller"], child.END)
    init.leave_terminal(spec["on_terminal"])
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.make_private("/", recursive=True)
    _Machine(spec).build()
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
    pid = os.fork()
    if pid == 0:
        init.run_in_child(spec, become_command)
    os.close(spec["errors"])
    try:
        return child.supervise(pid, init.passed_on(spec["on_terminal"]))
    finally:
        _end_the_rest()


def become_command(spec: Spec) -> int:
    """The command's own process. It dies with the helper."""
    process.set_parent_death_signal(signal.SIGKILL)
    os.chdir(spec["cwd"])
    child.reset_signals(spec["ignored"])
    child.execute(spec["argv"], spec["env"])


def _end_the_rest() -> None:
    """Kill every descendant: each becomes our child when its parent ends."""
    while True:
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    own = os.getpid()
    try:
        with open(f"/proc/self/task/{own}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_ours(pid)]


def _is_ours(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return False
    return int(line[line.rindex(b")") + 2 :].split()[1]) == os.getpid()


class _Machine:
    """Builds the fork's tree at ``WORKDIR/root`` by the steps of a plan, and goes into it."""

    def __init__(self, spec: Spec) -> None:
        self.workdir = os.fsencode(spec["workdir"])
        self.root = os.path.join(self.workdir, b"root")
        self.user = bool(spec["user"])
        self.steps = spec["steps"]
        self.by_descriptor = True

    def build(self) -> None:
        """Mount everything, then make it the root."""
        for kind, target, *rest in self.steps:
            getattr(self, kind)(target, *rest)
        old = os.open("/", os.O_PATH)
        os.chdir(self.root)
        namespaces.pivot_root(".", ".")
        os.chdir(old)
        os.close(old)
        mount.umount2(".", mount.MNT_DETACH)
        os.chdir("/")

    def at(self, target: bytes) -> bytes:
        """Where ``target`` is in the tree being built."""
        return self.root + target if target != b"/" else self.root

    def bind(self, target: bytes, recursive: bool, read_only: bool) -> None:
        """Show the machine's own; what can't be shown (a mount of another user's) is left out."""
        try:
            mount.bind(target, self.at(target), recursive=recursive, read_only=read_only)
        except OSError as error:
            if target == b"/" or error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOENT):
                raise

    def overlay(self, target: bytes, number: int) -> None:
        """A copy of its own; read-only where overlayfs can't take it as a lower layer."""
        try:
            self.stack(target, target, number)
        except OSError:
            if target == b"/":
                raise
            self.bind(target, False, True)

    def skeleton(self, target: bytes, number: int) -> None:
        """An overlay over placeholders, on which the next steps mount (``plan.py``)."""
        self.stack(os.path.join(self.workdir, b"%d/skeleton" % number), target, number)

    def stack(self, lower: bytes, target: bytes, number: int) -> None:
        """An overlay of upper directory ``number`` over ``lower``, at ``target`` in the tree."""
        layers = os.path.join(self.workdir, b"%d" % number)
        flags = ["volatile", *(["userxattr"] if self.user else [])]
        if self.by_descriptor:
            try:
                self._stack_by_descriptor(lower, layers, flags, self.at(target))
                return
            except MountError as error:
                if error.errno != errno.EINVAL or "fd " not in (error.strerror or ""):
                    raise
                self.by_descriptor = False  # before Linux 6.13
        words = [f"{key}={value}" for key, value in _OPTIONS] + flags
        os.chdir(layers)
        data = ",".join(words).encode() + b",upperdir=upper,workdir=work,lowerdir=" + _escape(lower)
        try:
            mount.mount("lamina", self.at(target), "overlay", 0, data)
        except OSError as error:
            name = os.fsdecode(target)
            raise MountError(error.errno or 0, "mount overlay", name) from None

    def _stack_by_descriptor(
        self, lower: bytes, layers: bytes, flags: list[str], target: bytes
    ) -> None:
        """Each directory as an fd: no path is too long, no character special."""
        with mount.FsContext("overlay", target) as context:
            context.string("source", "lamina")
            for key, value in _OPTIONS:
                context.string(key, value)
            for flag in flags:
                context.flag(flag)
            for key, path in (
                ("upperdir", os.path.join(layers, b"upper")),
                ("workdir", os.path.join(layers, b"work")),
                ("lowerdir+", lower),
            ):
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
                try:
                    context.set_fd(key, fd)
                finally:
                    os.close(fd)
            context.create()
            tree = context.mount()
        try:
            mount.move_mount(tree, target)
        finally:
            os.close(tree)

    def hide(self, target: bytes) -> None:
        """An empty read-only directory in place of one that no command is to see."""
        if os.path.isdir(self.at(target)):
            options = [("mode", "555"), ("size", "0"), ("nr_inodes", "2")]
            mount.mount_new("tmpfs", self.at(target), options, mount.MOUNT_ATTR_RDONLY)


def _escape(path: bytes) -> bytes:
    """A path among the options of overlayfs, where these three mean something."""
    for special in (b"\\", b":", b","):
        path = path.replace(special, b"\\" + special)
    return path
