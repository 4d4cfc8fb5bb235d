"""Mounting overlayfs over any number of layers, on new kernels and on old ones.

From Linux 6.13 on each directory is handed to the kernel as a file descriptor, so that
neither the length of a path nor their sum matters; the kernel takes 500 lower layers.
Before that, mount(2) has one page for all options: the directories get names of one to three
characters, as symlinks in a directory of their own, relative to a thread that stands in it.

A layer may be a mount that is attached nowhere, as the erofs driver makes them
(:func:`detached_path`). Before Linux 6.15 overlayfs takes only what is attached in the mount
namespace of who mounts: there that thread gets a namespace of its own, which nobody else sees and
which is gone, with all in it, whenever the thread or the process ends.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from lamina.errors import MountError
from lamina.kernel import mount, namespaces
from lamina.kernel.selinux import format_mount_label

MAX_LOWERS = 500
"""fs/overlayfs/params.h, OVL_MAX_STACK."""

# The upper directory is read as a layer: these would put something else than files into it.
# nofollow also keeps a layer's own redirects from leading anywhere.
_PLAIN = (("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow"))


class Overlay(NamedTuple):
    """What to stack. Without ``upper`` the mount is read-only and needs two lowers."""

    lowers: Sequence[str]
    """Topmost first."""
    upper: str | None = None
    work: str | None = None
    userxattr: bool = False
    """Markers are ``user.overlay.*``: the only ones in a user namespace (Linux 5.11)."""
    volatile: bool = False
    """Skip all syncs: what is in ``upper`` after a crash of the machine is not to be used."""
    label: str = ""
    """An SELinux context, or ""."""

    def mount(self, target: str) -> None:
        """Mount at ``target``.

        Raises:
            MountError: the kernel refused, with its own words.
        """
        if by_descriptor():
            try:
                self._mount_by_descriptor(target)
            except MountError as error:
                if error.errno != errno.EINVAL or not any(map(_is_detached, self.lowers)):
                    raise
            else:
                return
        self._mount_classic(target)

    def options(self) -> tuple[str, ...]:
        """The same for mount(8). Paths with a comma or a colon can't be told in it."""
        plain = [f"{key}={value}" for key, value in _PLAIN]
        writable = [f"upperdir={self.upper}", f"workdir={self.work}"] if self.upper else ["ro"]
        lowers = "lowerdir=" + ":".join(self.lowers)
        return (*plain, *self._flags(), *writable, lowers)

    def _directories(self) -> list[tuple[str, str]]:
        writable = [("upperdir", self.upper or ""), ("workdir", self.work or "")]
        return (writable if self.upper else []) + [("lowerdir+", path) for path in self.lowers]

    def _flags(self) -> list[str]:
        return ["userxattr"] * self.userxattr + ["volatile"] * self.volatile

    def _mount_by_descriptor(self, target: str) -> None:
        with mount.FsContext("overlay", target) as context:
            context.string("source", "overlay")
            for key, value in _PLAIN:
                context.string(key, value)
            for flag in self._flags():
                context.flag(flag)
            if self.label:
                context.string("context", self.label)
            for key, path in self._directories():
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    context.set_fd(key, fd)
                finally:
                    os.close(fd)
            context.create()
            tree = context.mount(0 if self.upper else mount.MOUNT_ATTR_RDONLY)
        try:
            mount.move_mount(tree, target)
        finally:
            os.close(tree)

    def _mount_classic(self, target: str) -> None:
        if len(self.lowers) > MAX_LOWERS:
            why = f"overlay of {len(self.lowers)} layers, {MAX_LOWERS} is the limit"
            raise MountError(errno.EINVAL, why, target)
        import tempfile

        with tempfile.TemporaryDirectory(prefix="lamina-links-") as links:
            names = [_short(number) for number in range(len(self.lowers))]
            detached = {}
            for name, path in zip(names, self.lowers, strict=True):
                if _is_detached(path):
                    os.mkdir(f"{links}/{name}")
                    detached[name] = int(path.removeprefix(_DETACHED))
                else:
                    os.symlink(path, f"{links}/{name}")
            options = [f"{key}={value}" for key, value in _PLAIN] + self._flags()
            options.append("lowerdir=" + ":".join(names))
            if self.upper and self.work:
                os.symlink(self.upper, f"{links}/upper")
                os.symlink(self.work, f"{links}/work")
                options += ["upperdir=upper", "workdir=work"]
            data = format_mount_label(",".join(options), self.label)
            flags = 0 if self.upper else mount.MS_RDONLY
            if detached:
                os.mkdir(f"{links}/merged")
                _mount_aside(links, detached, target, flags, data)
            else:
                _mount_standing_in(links, os.path.abspath(target), flags, data)


_DETACHED = "/proc/self/fd/"


def detached_path(fd: int) -> str:
    """A path to a mount that is attached nowhere, which :class:`Overlay` takes for a layer; good
    for this process, while ``fd`` is open. Attached by a mount of it on old kernels, for once."""
    return f"{_DETACHED}{fd}"


def _is_detached(path: str) -> bool:
    return path.startswith(_DETACHED)


@cache
def by_descriptor() -> bool:
    """Whether overlayfs takes its layers as file descriptors here (Linux 6.13)."""
    if not mount.has_new_api():
        return False
    try:
        with mount.FsContext("overlay") as context:
            fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                context.set_fd("lowerdir+", fd)
            finally:
                os.close(fd)
    except OSError:
        return False
    return True


def _short(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    name = digits[number % 36]
    while number := number // 36:
        name = digits[number % 36] + name
    return name


def _mount_standing_in(directory: str, target: str, flags: int, data: str) -> None:
    """mount(2) with ``directory`` as working directory."""

    def work() -> None:
        namespaces.unshare(namespaces.CLONE_FS)
        os.chdir(directory)
        mount.mount("overlay", target, "overlay", flags, data)

    _in_a_thread(work, target)


def _mount_aside(
    directory: str, detached: Mapping[str, int], target: str, flags: int, data: str
) -> None:
    """The same with detached mounts on directories in it, where this thread alone sees them."""
    made: list[int] = []

    def work() -> None:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        _share_no_mounts()
        os.chdir(directory)
        for name, fd in detached.items():
            mount.move_mount(fd, name)
        mount.mount("overlay", "merged", "overlay", flags, data)
        made.append(mount.open_tree("merged", mount.OPEN_TREE_CLONE))
        for name in ("merged", *detached):
            mount.umount2(name, mount.MNT_DETACH)

    try:
        _in_a_thread(work, target)
        mount.move_mount(made[0], target)
    finally:
        for fd in made:
            os.close(fd)


def _share_no_mounts() -> None:
    """Let the mounts of this thread's namespace be seen in no other (mount_namespaces(7))."""
    try:
        mount.make_private("/", recursive=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The root of a chroot(2) is no mount: go by the namespace's, and come back.
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                namespaces.setns(namespace, namespaces.CLONE_NEWNS)
            finally:
                os.close(namespace)
            mount.make_private("/", recursive=True)
            os.fchdir(root)
            os.chroot(".")
        finally:
            os.close(root)


def _in_a_thread(work: Callable[[], None], target: str) -> None:
    """Do what changes a thread for good, in one that is made for it alone."""
    import threading

    failure: list[OSError] = []

    def run() -> None:
        try:
            work()
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="lamina-mount")
    thread.start()
    thread.join()
    if failure:
        raise MountError(failure[0].errno or 0, "mount overlay", target) from failure[0]
