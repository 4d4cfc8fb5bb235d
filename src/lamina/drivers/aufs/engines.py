"""What shows AUFS branches as one tree: the kernel's aufs, or fuse-overlayfs.

Both read and write the same branches. The kernel is asked first; where it has no aufs, or
this is a user namespace (in which aufs refuses to mount), fuse-overlayfs does the work.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from lamina.errors import DriverUnsupported, MountError
from lamina.kernel import filesystems, mount, namespaces
from lamina.kernel.remove import remove_tree
from lamina.kernel.selinux import format_mount_label

_XINO = "xino=/dev/shm/aufs.xino"
_XINO_WAIT = 5.0  # seconds for other mounts to be through with that file
_FIXED_OPTIONS = 54
"""Bytes that Docker leaves for the options behind the branches, whatever they are."""
_OLDEST_FUSE = (1, 0)
_FUSE_EXIT = 10.0  # seconds that fuse-overlayfs gets to finish after the unmount


@dataclass(frozen=True, slots=True)
class Union:
    """One mount to be made."""

    id: str
    branch: str
    """The writable branch."""
    below: Sequence[str]
    """The read-only branches, topmost first; all in one directory with the writable one."""
    target: str
    label: str = ""
    """An SELinux context, or ""."""


class Engine(ABC):
    """One way of making a union of AUFS branches."""

    name: ClassVar[str]

    @abstractmethod
    def mount(self, union: Union) -> None:
        """Show the branches at ``union.target``; :class:`MountError` and nothing left if not."""

    @abstractmethod
    def unmount(self, target: str, id: str) -> None:
        """Take the mount away. OSError, e.g. EBUSY."""

    @abstractmethod
    def settle(self, id: str, branch: str) -> None:
        """Turn marks of the engine's own in ``branch``, which is not mounted, into AUFS's."""

    @abstractmethod
    def unsettled(self, id: str) -> bool:
        """Whether the branch may hold marks of the engine's own."""

    @abstractmethod
    def describe(self) -> str:
        """The engine and its version, for people."""


class KernelEngine(Engine):
    """The aufs module, mounted just as Docker's driver does it."""

    name = "kernel"

    @staticmethod
    def missing() -> str | None:
        """Why it can't be used here, or None."""
        supported = filesystems.supported("aufs")
        if namespaces.in_user_namespace():
            return "AUFS cannot be used in a user namespace"
        if os.geteuid() != 0:
            return "mounting AUFS takes root"
        return None if supported else "AUFS was not found in /proc/filesystems"

    def mount(self, union: Union) -> None:
        """See :meth:`Engine.mount`. What does not fit a page is appended branch by branch."""
        data, rest = mount_data(union.branch, union.below, union.label, dirperm=dirperm1())
        try:
            _mount_with_xino(union.target, data)
            for branch in rest:
                more = format_mount_label(f"append:{branch}=ro+wh", union.label)
                mount.mount("none", union.target, "aufs", mount.MS_REMOUNT, more)
        except OSError as error:
            _undo(union.target)
            raise MountError(error.errno or 0, "mount aufs", union.target) from error

    def unmount(self, target: str, id: str) -> None:
        """See :meth:`Engine.unmount`. ``auplink``, where installed, writes pseudo-links out."""
        auplink = shutil.which("auplink")
        if auplink is not None:
            subprocess.run(
                [auplink, target, "flush"],
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
        mount.umount2(target)

    def settle(self, id: str, branch: str) -> None:
        """See :meth:`Engine.settle`: there is nothing to do."""

    def unsettled(self, id: str) -> bool:
        """See :meth:`Engine.unsettled`."""
        return False

    def describe(self) -> str:
        """See :meth:`Engine.describe`."""
        return f"kernel aufs (Linux {os.uname().release})"


def mount_data(
    branch: str, below: Sequence[str], label: str, *, dirperm: bool
) -> tuple[str, list[str]]:
    """The options of the first mount(2), and the branches that did not fit into its page.

    Raises:
        MountError: not even the writable branch fits (ENAMETOOLONG).
    """
    options = f"dio,{_XINO}" + ",dirperm1" * dirperm
    room = mmap.PAGESIZE - len(os.fsencode(label)) - _FIXED_OPTIONS - len(",dirperm1") * dirperm
    branches = f"br:{branch}=rw"
    used = len(os.fsencode(branches))
    if used > room:
        raise MountError(errno.ENAMETOOLONG, "aufs branch", branch)
    fitting = 0
    for path in below:
        more = f":{path}=ro+wh"
        used += len(os.fsencode(more))
        if used > room:
            break
        branches += more
        fitting += 1
    return format_mount_label(f"{branches},{options}", label), list(below[fitting:])


def _mount_with_xino(target: str, data: str) -> None:
    """Mount aufs. The file ``xino``, which the kernel makes exclusively and unlinks at once, is
    there for a moment while another thread or process mounts: then it is tried again."""
    deadline = time.monotonic() + _XINO_WAIT
    while True:
        try:
            return mount.mount("none", target, "aufs", 0, data)
        except FileExistsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)


@cache
def dirperm1() -> bool:
    """Whether this aufs has ``dirperm1``; found out once, by mounting with it."""
    with (
        tempfile.TemporaryDirectory(prefix="lamina-aufs-base-") as base,
        tempfile.TemporaryDirectory(prefix="lamina-aufs-union-") as union,
    ):
        try:
            _mount_with_xino(union, f"br:{base},dirperm1,{_XINO}")
        except OSError:
            return False
        mount.umount2(union)
    return True


class FuseEngine(Engine):
    """fuse-overlayfs, one process a mount.

    ``work`` holds a work directory for each branch from its mount on until what fuse-overlayfs
    left in it is AUFS again: it is also the sign that a crash came between. The process
    inherits a locked file in ``run``, so that its end can be waited for.
    """

    name = "fuse"

    def __init__(self, work: str, run: str) -> None:
        self._work = work
        self._run = run

    @staticmethod
    def missing() -> str | None:
        """Why it can't be used here, or None."""
        version = _fuse_version()
        if version is None:
            return "fuse-overlayfs is not on PATH (apt install fuse-overlayfs)"
        if version < _OLDEST_FUSE:
            return f"fuse-overlayfs is too old ({_dotted(version)})"
        try:
            os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return f"/dev/fuse can't be opened ({error.strerror})"
        return None

    def mount(self, union: Union) -> None:
        """See :meth:`Engine.mount`. Branches are named relative to where they all lie."""
        work = f"{self._work}/{union.id}"
        os.makedirs(work, mode=0o700, exist_ok=True)
        directory, branch = os.path.split(union.branch)
        options = [
            "lowerdir=" + ":".join(os.path.relpath(path, directory) for path in union.below),
            f"upperdir={branch}",
            f"workdir={os.path.relpath(work, directory)}",
            "writeback=0",  # else the mtime that is shown is not the one that is written
        ]
        if union.label:
            options.append(f'context="{union.label}"')
        fd = self._wait_for_end(union.id)
        try:
            done = subprocess.run(
                ["fuse-overlayfs", "-o", ",".join(options), os.path.abspath(union.target)],
                cwd=directory,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(fd,),
            )
        finally:
            os.close(fd)
        if done.returncode:
            self.settle(union.id, union.branch)
            said = os.fsdecode(done.stderr).strip().splitlines()
            raise MountError(errno.EIO, "fuse-overlayfs", union.target, tuple(said[-3:]))

    def unmount(self, target: str, id: str) -> None:
        """See :meth:`Engine.unmount`."""
        try:
            mount.umount2(target)
        except PermissionError:
            _fusermount(target)
        fd = self._wait_for_end(id)
        os.unlink(self._lock_file(id))
        os.close(fd)

    def settle(self, id: str, branch: str) -> None:
        """See :meth:`Engine.settle`. May be interrupted and done again."""
        if self.unsettled(id):
            from lamina.archive import fuseoverlay

            fuseoverlay.settle(branch)
            remove_tree(f"{self._work}/{id}")

    def unsettled(self, id: str) -> bool:
        """See :meth:`Engine.unsettled`."""
        return os.path.lexists(f"{self._work}/{id}")

    def describe(self) -> str:
        """See :meth:`Engine.describe`."""
        return f"fuse-overlayfs {_dotted(_fuse_version() or (0,))}"

    def _lock_file(self, id: str) -> str:
        return f"{self._run}/{id}.fuse"

    def _wait_for_end(self, id: str) -> int:
        """Wait until the process behind a mount that is gone has written all it had.

        Returns an fd with the lock that it had. OSError (EBUSY) if it goes on: someone has bound
        the mount elsewhere.
        """
        fd = os.open(self._lock_file(id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _FUSE_EXIT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    what = "fuse-overlayfs does not end (is the mount in use elsewhere?)"
                    raise OSError(errno.EBUSY, what, id) from None
            time.sleep(0.002)


def choose(wanted: str | None, work: str, run: str) -> tuple[Engine, str]:
    """The engine to use, and why the other one is not.

    Raises:
        DriverUnsupported: there is none, or not the one that is ``wanted``.
    """
    reasons = {"kernel": KernelEngine.missing(), "fuse": FuseEngine.missing()}
    for name in (wanted,) if wanted else ("kernel", "fuse"):
        if name in reasons and reasons[name] is None:
            engine = KernelEngine() if name == "kernel" else FuseEngine(work, run)
            other = "fuse" if name == "kernel" else "kernel"
            return engine, "it was asked for" if wanted else reasons[other] or "it comes first"
    words = [f"{name}: {why}" for name, why in reasons.items() if why and wanted in (None, name)]
    raise DriverUnsupported("aufs", "; ".join(words) or f"there is no union engine '{wanted}'")


@cache
def _fuse_version() -> tuple[int, ...] | None:
    tool = shutil.which("fuse-overlayfs")
    if tool is None:
        return None
    said = subprocess.run([tool, "--version"], check=False, capture_output=True, text=True)
    found = re.search(r"fuse-overlayfs: version (\d+(?:\.\d+)*)", said.stdout + said.stderr)
    return tuple(map(int, found[1].split("."))) if found else (0,)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _undo(target: str) -> None:
    """Unmount what was half mounted; not mounted is fine."""
    try:
        mount.umount2(target)
    except OSError:
        pass


def _fusermount(target: str) -> None:
    """Unmount as an ordinary user outside a user namespace: a set-user-ID helper's work."""
    tool = shutil.which("fusermount3") or shutil.which("fusermount")
    if tool is None:
        raise PermissionError(errno.EPERM, "unmounting takes fusermount3", target)
    done = subprocess.run([tool, "-u", target], check=False, capture_output=True, text=True)
    if done.returncode:
        busy = "busy" in done.stderr
        raise OSError(errno.EBUSY if busy else errno.EPERM, done.stderr.strip(), target)
