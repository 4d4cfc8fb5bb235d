"""The mounts of a container: what pid 1 does to turn a directory into a root.

Everything is mounted after pivot_root(2), so that paths and their symbolic links are resolved
within the new root; what comes from the old one is held by fds from before, and the old root
is let go last, because a user namespace may mount proc only while it can see another.

Defaults (file systems, masked and read-only paths) are those of runc's and moby's
``oci/defaults.go``.
"""

from __future__ import annotations

import errno
import os

from lamina.errors import MountError
from lamina.kernel import mount, namespaces

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
    sources = [os.open(source, os.O_PATH) for source, _, _ in spec["binds"]]
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name, _ in DEVICES}
    terminal = _terminal() if spec["on_terminal"] else None
    old_proc, old_sys = (os.open(path, os.O_PATH) for path in ("/proc", "/sys"))
    old_root = os.open("/", os.O_PATH)
    files = _write_files(spec["files"])

    mount.bind(spec["root"], spec["root"], recursive=True)
    os.chdir(spec["root"])
    namespaces.pivot_root(".", ".")
    os.chdir("/")

    if "/proc" in spec["directories"]:
        _mount_proc(old_proc)
    if "/sys" in spec["directories"]:
        _mount_sys(old_sys, spec["private_network"])
    if "/dev" in spec["directories"]:
        _mount_dev(devices, terminal)
    _mask()
    for source, (_, target, read_only) in zip(sources, spec["binds"], strict=True):
        mount.bind(source, target, recursive=True, read_only=read_only)
    for target, fd in files:
        mount.bind(fd, target)

    os.chdir(old_root)
    mount.umount2(".", mount.MNT_DETACH)
    os.chdir("/")
    # All these fds are close-on-exec; pid 1 itself must not hold them either.
    for fd in (*sources, *devices.values(), *(fd for _, fd in files), old_proc, old_sys, old_root):
        os.close(fd)
    if terminal is not None:
        os.close(terminal)


def _terminal() -> int | None:
    """The caller's terminal, to be /dev/console, so that ttyname(3) has a name for it."""
    for fd in (0, 1, 2):
        if os.isatty(fd):
            try:
                return os.open(os.ttyname(fd), os.O_PATH)
            except OSError:
                return None
    return None


def _mount_proc(old: int) -> None:
    try:
        mount.mount_new("proc", "/proc", attr=_SAFE)
    except MountError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
        # In a user namespace, below a container whose own proc is masked.
        mount.bind(old, "/proc", recursive=True)


def _mount_sys(old: int, private_network: bool) -> None:
    """Sysfs, read-only. It belongs to the network namespace: a host's can only be bound."""
    try:
        mount.mount_new("sysfs", "/sys", attr=_SAFE | _RDONLY)
    except MountError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
        if private_network:
            raise
        mount.bind(old, "/sys", recursive=True, read_only=True)
        return
    try:
        mount.mount_new("cgroup2", "/sys/fs/cgroup", attr=_SAFE | _RDONLY)
    except OSError:  # a kernel without it
        pass


def _mount_dev(devices: dict[str, int], terminal: int | None) -> None:
    attr = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_STRICTATIME
    mount.mount_new("tmpfs", "/dev", [("mode", "755"), ("size", "65536k")], attr)
    umask = os.umask(0)
    for name, minor in DEVICES:
        major = _TTY_MAJOR if name == "tty" else _MEM_MAJOR
        try:
            os.mknod(f"/dev/{name}", 0o20666, os.makedev(major, minor))
        except PermissionError:  # a user namespace makes no devices
            _bind_file(devices[name], f"/dev/{name}")
    for name, to in _LINKS:
        os.symlink(to, f"/dev/{name}")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"/dev/{name}", 0o755)
    os.umask(umask)
    _mount_devpts()
    mount.mount_new("tmpfs", "/dev/shm", [("mode", "1777"), ("size", "65536k")], _SAFE)
    try:
        mount.mount_new("mqueue", "/dev/mqueue", attr=_SAFE)
    except MountError:  # a kernel without it
        os.rmdir("/dev/mqueue")
    if terminal is not None:
        _bind_file(terminal, "/dev/console")


def _mount_devpts() -> None:
    options = [("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620")]
    attr = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC
    try:
        mount.mount_new("devpts", "/dev/pts", [*options, ("gid", "5")], attr)
    except MountError:  # group tty has no place in this user namespace
        mount.mount_new("devpts", "/dev/pts", options, attr)


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


def _write_files(files: list[tuple[str, bytes]]) -> list[tuple[str, int]]:
    """Each file's target, and an fd of its content in a memory file system.

    It covers the old root's /dev, of which all that is needed has been opened: the layer keeps
    what it has, and what the command writes there goes with the container.
    """
    mount.mount_new("tmpfs", "/dev", [("mode", "755")])
    opened = []
    for number, (target, content) in enumerate(files):
        name = f"/dev/{number}"
        with open(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "wb") as file:
            file.write(content)
        opened.append((target, os.open(name, os.O_PATH)))
    return opened


def _bind_file(source: int, target: str) -> None:
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mount.bind(source, target)
