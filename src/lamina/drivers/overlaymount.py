"""Mounting overlayfs over any number of layers, on new kernels and on old ones.

From Linux 6.13 on each directory is handed to the kernel as a file descriptor, so that
neither the length of a path nor their sum matters; the kernel takes 500 lower layers.
Before that, mount(2) has one page for all options: the directories get names of one to three
characters, as symlinks in a directory of their own, relative to a thread that stands in it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
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
            self._mount_by_descriptor(target)
        else:
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
            for name, path in zip(names, self.lowers, strict=True):
                os.symlink(path, f"{links}/{name}")
            options = [f"{key}={value}" for key, value in _PLAIN] + self._flags()
            options.append("lowerdir=" + ":".join(names))
            if self.upper and self.work:
                os.symlink(self.upper, f"{links}/upper")
                os.symlink(self.work, f"{links}/work")
                options += ["upperdir=upper", "workdir=work"]
            data = format_mount_label(",".join(options), self.label)
            flags = 0 if self.upper else mount.MS_RDONLY
            _mount_standing_in(links, os.path.abspath(target), flags, data)


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
    """mount(2) with ``directory`` as working directory, that of a thread made for it alone."""
    import threading

    failure: list[OSError] = []

    def work() -> None:
        try:
            namespaces.unshare(namespaces.CLONE_FS)
            os.chdir(directory)
            mount.mount("overlay", target, "overlay", flags, data)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="lamina-mount")
    thread.start()
    thread.join()
    if failure:
        raise MountError(failure[0].errno or 0, "mount overlay", target) from failure[0]
