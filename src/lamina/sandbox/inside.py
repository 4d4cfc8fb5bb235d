"""The mounts of a container: what pid 1 does to turn a directory into a root.

Every mount is made first, detached, while the host's tree is in sight (a user namespace may
mount proc only while it sees another, and binds have their sources there). Then the root is
entered, the host's tree let go, and the mounts are attached: by then a path and the links in
it can lead nowhere but into the new root.

Defaults (file systems, masked and read-only paths) are those of runc's and moby's
``oci/defaults.go``. Needs the mount API of Linux 5.2.
"""

from __future__ import annotations

import errno
import os

from lamina.errors import MountError
from lamina.kernel import mount, namespaces
from lamina.kernel._syscall import AT_RECURSIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SAFE = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
_RDONLY = mount.MOUNT_ATTR_RDONLY

DEVICES = (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9), ("tty", 0))
_TTY_MAJOR, _MEM_MAJOR = 5, 1
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
)
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def enter_root(spec: dict[str, Any]) -> None:
    """Make ``spec["root"]`` this mount namespace's root, with all that a container has in it."""
    mount.make_private("/", recursive=True)
    there = spec["directories"]
    mounts: list[tuple[int, str]] = []
    if "/proc" in there:
        mounts.append((_proc(), "/proc"))
    if "/sys" in there:
        mounts += _sys(spec["private_network"])
    if "/dev" in there:
        mounts += _dev(spec["on_terminal"])
    mounts += [(_tree(source), target) for source, target, _ in spec["binds"]]
    mounts += _files(spec["files"])  # last: they cover the old root's /dev

    _change_root(spec["root"])
    for fd, target in mounts:
        mount.move_mount(fd, target)
        os.close(fd)
    _mask()
    for _, target, read_only in spec["binds"]:
        if read_only:
            mount.bind(target, target, recursive=True, read_only=True)


def _change_root(root: str) -> None:
    old = os.open("/", os.O_PATH)
    mount.bind(root, root, recursive=True)
    os.chdir(root)
    namespaces.pivot_root(".", ".")
    os.chdir(old)
    os.close(old)
    mount.umount2(".", mount.MNT_DETACH)
    os.chdir("/")


def _new(fstype: str, attr: int, *options: tuple[str, str | None]) -> int:
    """A detached new file system."""
    with mount.FsContext(fstype, f"a container's {fstype}") as context:
        for key, value in options:
            context.option(key, value)
        context.create()
        return context.mount(attr)


def _tree(path: str) -> int:
    """A detached copy of what is mounted at and below ``path``."""
    return mount.open_tree(path, mount.OPEN_TREE_CLONE | AT_RECURSIVE)


def _proc() -> int:
    try:
        return _new("proc", _SAFE)
    except MountError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
        return _tree("/proc")  # a user namespace in a container whose own proc is masked


def _sys(private_network: bool) -> list[tuple[int, str]]:
    """Sysfs, read-only. It belongs to the network namespace: a host's can only be bound."""
    try:
        sysfs = _new("sysfs", _SAFE | _RDONLY)
    except MountError as error:
        if private_network or error.errno not in (errno.EPERM, errno.EACCES):
            raise
        sysfs = _tree("/sys")
        mount.mount_setattr(sysfs, attr_set=_RDONLY, recursive=True)
        return [(sysfs, "/sys")]
    try:
        return [(sysfs, "/sys"), (_new("cgroup2", _SAFE | _RDONLY), "/sys/fs/cgroup")]
    except MountError:  # a kernel without it
        return [(sysfs, "/sys")]


def _dev(on_terminal: bool) -> list[tuple[int, str]]:
    attr = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_STRICTATIME
    dev = _new("tmpfs", attr, ("mode", "755"), ("size", "65536k"))
    shm = _new("tmpfs", _SAFE, ("mode", "1777"), ("size", "65536k"))
    mounts = [(dev, "/dev"), (_devpts(), "/dev/pts"), (shm, "/dev/shm")]
    directories = ["pts", "shm"]
    try:
        mounts.append((_new("mqueue", _SAFE), "/dev/mqueue"))
        directories.append("mqueue")
    except MountError:  # a kernel without it
        pass
    umask = os.umask(0)
    for name in directories:
        os.mkdir(name, 0o755, dir_fd=dev)
    for name, to in _LINKS:
        os.symlink(to, name, dir_fd=dev)
    for name, minor in DEVICES:
        major = _TTY_MAJOR if name == "tty" else _MEM_MAJOR
        try:
            os.mknod(name, 0o20666, os.makedev(major, minor), dir_fd=dev)
        except PermissionError:  # a user namespace makes no devices
            mounts.append(_device(dev, f"/dev/{name}", name))
    terminal = _terminal_name() if on_terminal else None
    if terminal is not None:
        mounts.append(_device(dev, terminal, "console"))
    os.umask(umask)
    return mounts


def _device(dev: int, source: str, name: str) -> tuple[int, str]:
    """The host's device ``source``, to be mounted on the file ``name``, which is made in /dev."""
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=dev))
    return mount.open_tree(source, mount.OPEN_TREE_CLONE), f"/dev/{name}"


def _devpts() -> int:
    options = [("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620")]
    attr = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC
    try:
        return _new("devpts", attr, *options, ("gid", "5"))
    except MountError:  # group tty has no place in this user namespace
        return _new("devpts", attr, *options)


def _terminal_name() -> str | None:
    """The caller's terminal: it becomes /dev/console, so that ttyname(3) has a name for it."""
    for fd in (0, 1, 2):
        if os.isatty(fd):
            try:
                return os.ttyname(fd)
            except OSError:  # of another mount namespace
                return None
    return None


def _files(files: list[tuple[str, bytes]]) -> list[tuple[int, str]]:
    """Files from memory, to be mounted at their paths: what the root has there stays.

    They lie in a tmpfs that covers the old root's /dev, for only what is attached somewhere
    can be copied (before Linux 6.15).
    """
    mount.mount_new("tmpfs", "/dev", [("mode", "755")])
    mounts = []
    for number, (target, content) in enumerate(files):
        name = f"/dev/{number}"
        with open(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "wb") as file:
            file.write(content)
        mounts.append((mount.open_tree(name, mount.OPEN_TREE_CLONE), target))
    return mounts


def _mask() -> None:
    """Hide what tells of the host, and make read-only what would change it."""
    for path in MASKED_PATHS:
        try:
            if os.path.isdir(path):
                mount.mount_new("tmpfs", path, [("size", "0"), ("nr_inodes", "2")], _RDONLY)
            elif os.path.lexists(path):
                mount.bind("/dev/null", path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    for path in READONLY_PATHS:
        if os.path.lexists(path):
            mount.bind(path, path, recursive=True, read_only=True)
