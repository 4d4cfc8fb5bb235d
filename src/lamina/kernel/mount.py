"""Mounts: the new API (fsopen(2) and its kin, Linux 5.2) and the classic mount(2).

The first half is one thin function a system call, named as in the manual pages. The second
half is small helpers without policy. Where the new API is missing, or a seccomp filter
refuses it, :func:`mount_new` and :func:`bind` use the classic calls.

Fds that these functions return are close-on-exec and the caller's to close.
"""

from __future__ import annotations

import ctypes
import os

from lamina.errors import MountError
from lamina.kernel import _syscall
from lamina.kernel._syscall import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AnyPath,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_ulong,
    c_void_p,
    check,
    encode,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    Option = tuple[str, str | bytes | int | None]

# mount(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

# umount2(2)
MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

# fsopen(2), fspick(2), fsconfig(2), fsmount(2)
FSOPEN_CLOEXEC = 1
FSPICK_CLOEXEC = 1
FSPICK_SYMLINK_NOFOLLOW = 2
FSPICK_EMPTY_PATH = 8
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7

# open_tree(2), move_mount(2), mount_setattr(2)
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_SYMLINKS = 0x10
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOVE_MOUNT_BENEATH = 0x200
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x00
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

_MS_OF_ATTR = (
    (MOUNT_ATTR_RDONLY, MS_RDONLY),
    (MOUNT_ATTR_NOSUID, MS_NOSUID),
    (MOUNT_ATTR_NODEV, MS_NODEV),
    (MOUNT_ATTR_NOEXEC, MS_NOEXEC),
    (MOUNT_ATTR_NOATIME, MS_NOATIME),
    (MOUNT_ATTR_STRICTATIME, MS_STRICTATIME),
    (MOUNT_ATTR_NODIRATIME, MS_NODIRATIME),
    (MOUNT_ATTR_NOSYMFOLLOW, MS_NOSYMFOLLOW),
)
# What statvfs(3) tells of a mount and a remount in a user namespace has to repeat.
_LOCKED_FLAGS = (
    MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_RELATIME
)
_ST_RELATIME = 4096  # statvfs(3) numbers it unlike mount(2)

_function = _syscall.function
_mount = _function("mount", None, c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _function("umount2", None, c_char_p, c_int)
_fsopen = _function("fsopen", _syscall.NR_FSOPEN, c_char_p, c_uint)
_fspick = _function("fspick", _syscall.NR_FSPICK, c_int, c_char_p, c_uint)
_fsconfig = _function("fsconfig", _syscall.NR_FSCONFIG, c_int, c_uint, c_char_p, c_char_p, c_int)
_fsmount = _function("fsmount", _syscall.NR_FSMOUNT, c_int, c_uint, c_uint)
_open_tree = _function("open_tree", _syscall.NR_OPEN_TREE, c_int, c_char_p, c_uint)
_move_mount = _function(
    "move_mount", _syscall.NR_MOVE_MOUNT, c_int, c_char_p, c_int, c_char_p, c_uint
)
_mount_setattr = _function(
    "mount_setattr", _syscall.NR_MOUNT_SETATTR, c_int, c_char_p, c_uint, c_void_p, c_size_t
)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(
    source: AnyPath | None,
    target: AnyPath,
    fstype: str | None = None,
    flags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """mount(2). ``data`` is at most a page, less one byte."""
    check(
        _mount(
            None if source is None else encode(source),
            encode(target),
            None if fstype is None else encode(fstype),
            flags,
            None if data is None else encode(data),
        ),
        target,
    )


def umount2(target: AnyPath, flags: int = 0) -> None:
    """umount2(2)."""
    check(_umount2(encode(target), flags), target)


def fsopen(fstype: str) -> int:
    """fsopen(2): a file system context to configure. ENODEV when there is no such type."""
    return check(_fsopen(encode(fstype), FSOPEN_CLOEXEC), fstype)


def fspick(path: AnyPath, dir_fd: int = AT_FDCWD, flags: int = 0) -> int:
    """fspick(2): the context of the file system mounted at ``path``, to reconfigure."""
    return check(_fspick(dir_fd, encode(path), flags | FSPICK_CLOEXEC), path)


def fsconfig_string(fd: int, key: str, value: str | bytes) -> None:
    """fsconfig(2) FSCONFIG_SET_STRING. EINVAL from 256 bytes on."""
    check(_fsconfig(fd, FSCONFIG_SET_STRING, encode(key), encode(value), 0), key)


def fsconfig_flag(fd: int, key: str) -> None:
    """fsconfig(2) FSCONFIG_SET_FLAG."""
    check(_fsconfig(fd, FSCONFIG_SET_FLAG, encode(key), None, 0), key)


def fsconfig_fd(fd: int, key: str, value: int) -> None:
    """fsconfig(2) FSCONFIG_SET_FD. For overlay's directories from Linux 6.13 on, O_PATH too."""
    check(_fsconfig(fd, FSCONFIG_SET_FD, encode(key), None, value), key)


def fsconfig_create(fd: int) -> None:
    """fsconfig(2) FSCONFIG_CMD_CREATE: make the superblock."""
    check(_fsconfig(fd, FSCONFIG_CMD_CREATE, None, None, 0))


def fsconfig_reconfigure(fd: int) -> None:
    """fsconfig(2) FSCONFIG_CMD_RECONFIGURE: change a live superblock."""
    check(_fsconfig(fd, FSCONFIG_CMD_RECONFIGURE, None, None, 0))


def fsmount(fd: int, attr: int = 0) -> int:
    """fsmount(2): a detached mount of a created context."""
    return check(_fsmount(fd, FSMOUNT_CLOEXEC, attr))


def open_tree(path: AnyPath, flags: int = 0, dir_fd: int = AT_FDCWD) -> int:
    """open_tree(2): the mount at ``path``, or with OPEN_TREE_CLONE a detached copy of it."""
    return check(_open_tree(dir_fd, encode(path), flags | OPEN_TREE_CLOEXEC), path)


def move_mount(from_fd: int, to: AnyPath | int, flags: int = 0) -> None:
    """move_mount(2): attach the mount behind ``from_fd`` at a path, or at an fd's directory."""
    flags |= MOVE_MOUNT_F_EMPTY_PATH
    if isinstance(to, int):
        check(_move_mount(from_fd, b"", to, b"", flags | MOVE_MOUNT_T_EMPTY_PATH), to)
    else:
        target = encode(to)
        check(_move_mount(from_fd, b"", AT_FDCWD, target, flags | MOVE_MOUNT_T_SYMLINKS), to)


def mount_setattr(
    path: AnyPath | int,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2), Linux 5.12, on a path or a mount's fd."""
    attr = _MountAttr(attr_set, attr_clr, propagation, userns_fd)
    flags = AT_RECURSIVE if recursive else 0
    if isinstance(path, int):
        dir_fd, name, flags = path, b"", flags | AT_EMPTY_PATH
    else:
        dir_fd, name = AT_FDCWD, encode(path)
    size = ctypes.sizeof(attr)
    check(_mount_setattr(dir_fd, name, flags, ctypes.byref(attr), size), path)


# Helpers without policy.


class FsContext:
    """A new file system being configured; closes its fd at the end of a ``with`` block.

    Every failure is a MountError which carries, as ``kernel_log``, what the kernel wrote on
    the context. ``target`` is only what the error names.
    """

    def __init__(self, fstype: str, target: AnyPath = "none") -> None:
        self.fstype = fstype
        self.target = os.fsdecode(target)
        try:
            self.fd = fsopen(fstype)
        except OSError as error:
            raise self._error(error, f"mount {fstype}", ()) from None

    def __enter__(self) -> FsContext:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.fd)

    def string(self, key: str, value: str | bytes) -> None:
        """Set ``key`` to ``value`` (under 256 bytes)."""
        try:
            fsconfig_string(self.fd, key, value)
        except OSError as error:
            text = os.fsdecode(value)
            raise self._error(error, f"{self.fstype} option {key}={text}") from None

    def flag(self, key: str) -> None:
        """Set the option ``key``, which has no value."""
        try:
            fsconfig_flag(self.fd, key)
        except OSError as error:
            raise self._error(error, f"{self.fstype} option {key}") from None

    def set_fd(self, key: str, value: int) -> None:
        """Set ``key`` to an open file."""
        try:
            fsconfig_fd(self.fd, key, value)
        except OSError as error:
            raise self._error(error, f"{self.fstype} option {key} (fd {value})") from None

    def option(self, key: str, value: str | bytes | int | None) -> None:
        """A flag (None), a string, or an fd (int)."""
        if value is None:
            self.flag(key)
        elif isinstance(value, int):
            self.set_fd(key, value)
        else:
            self.string(key, value)

    def create(self) -> None:
        """Make the superblock."""
        try:
            fsconfig_create(self.fd)
        except OSError as error:
            raise self._error(error, f"mount {self.fstype}") from None

    def mount(self, attr: int = 0) -> int:
        """A detached mount (MOUNT_ATTR_*) as an fd for :func:`move_mount`."""
        try:
            return fsmount(self.fd, attr)
        except OSError as error:
            raise self._error(error, f"mount {self.fstype}") from None

    def log(self) -> tuple[str, ...]:
        """What the kernel has said since last asked, one string a message, severity removed."""
        messages: list[str] = []
        while True:
            try:
                raw = os.read(self.fd, 8192)
            except OSError:
                return tuple(messages)
            if not raw:
                return tuple(messages)
            text = os.fsdecode(raw).strip()
            messages.append(text[2:] if text[:2] in ("e ", "w ", "i ") else text)

    def _error(self, error: OSError, what: str, log: tuple[str, ...] | None = None) -> MountError:
        said = self.log() if log is None else log
        return MountError(error.errno or 0, what, self.target, said)


_new_api: bool | None = None


def has_new_api() -> bool:
    """Whether the new mount API is there and no seccomp filter refuses it.

    Asked once, by an open_tree(2) that needs no privilege; filters know these calls as a group.
    """
    global _new_api  # noqa: PLW0603 - functools.cache would cost an import
    if _new_api is None:
        try:
            os.close(open_tree("/"))
        except OSError:
            _new_api = False
        else:
            _new_api = True
    return _new_api


def mount_new(
    fstype: str, target: AnyPath | int, options: Iterable[Option] = (), attr: int = 0
) -> None:
    """Mount a new ``fstype`` at ``target`` (a path or a directory's fd).

    ``options`` are (key, value) with a string, an open file's number, or None for a flag;
    ``source`` is one of them. ``attr`` is MOUNT_ATTR_*. Raises MountError.
    """
    name = f"fd {target}" if isinstance(target, int) else target
    if not has_new_api():
        return _mount_classic(fstype, target, options, attr)
    with FsContext(fstype, name) as context:
        for key, value in options:
            context.option(key, value)
        context.create()
        fd = context.mount(attr)
    try:
        move_mount(fd, target)
    except OSError as error:
        raise MountError(error.errno or 0, f"mount {fstype}", os.fsdecode(name)) from None
    finally:
        os.close(fd)
    return None


def _mount_classic(
    fstype: str, target: AnyPath | int, options: Iterable[Option], attr: int
) -> None:
    """:func:`mount_new` by mount(2): all options in one page, an fd by its name in /proc."""
    source: AnyPath = fstype
    flags = sum(ms for bit, ms in _MS_OF_ATTR if attr & bit)
    words = []
    for key, value in options:
        if key == "source" and not isinstance(value, int) and value is not None:
            source = value
        elif key == "ro" and value is None:
            flags |= MS_RDONLY
        elif value is None:
            words.append(encode(key))
        else:
            text = b"/proc/self/fd/%d" % value if isinstance(value, int) else encode(value)
            words.append(encode(key) + b"=" + text)
    path: AnyPath = f"/proc/self/fd/{target}" if isinstance(target, int) else target
    try:
        mount(source, path, fstype, flags, b",".join(words) or None)
    except OSError as error:
        raise MountError(error.errno or 0, f"mount {fstype}", os.fsdecode(path)) from None


def bind(
    source: AnyPath | int,
    target: AnyPath | int,
    *,
    recursive: bool = False,
    read_only: bool = False,
) -> None:
    """Bind-mount ``source`` at ``target``; each a path or an fd.

    A read-only recursive bind makes every mount in it read-only. Symlinks are followed.
    """
    if not has_new_api():
        return _bind_classic(source, target, recursive=recursive, read_only=read_only)
    flags = OPEN_TREE_CLONE | (AT_RECURSIVE if recursive else 0)
    if isinstance(source, int):
        tree = open_tree("", flags | AT_EMPTY_PATH, source)
    else:
        tree = open_tree(source, flags)
    try:
        if read_only:
            mount_setattr(tree, attr_set=MOUNT_ATTR_RDONLY, recursive=recursive)
        move_mount(tree, target)
    finally:
        os.close(tree)
    return None


def _bind_classic(
    source: AnyPath | int, target: AnyPath | int, *, recursive: bool, read_only: bool
) -> None:
    path: AnyPath = f"/proc/self/fd/{source}" if isinstance(source, int) else source
    # The name of an fd leads below the new mount, not onto it: settle on a path first.
    to = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
    mount(path, to, None, MS_BIND | (MS_REC if recursive else 0))
    if not read_only:
        return
    targets: list[AnyPath] = [to]
    if recursive:
        from lamina.kernel import mountinfo

        targets += [point.target for point in mountinfo.mounts_below(to)]
    for each in targets:
        mount(None, each, None, MS_REMOUNT | MS_BIND | MS_RDONLY | _locked_flags(each))


def _locked_flags(path: AnyPath) -> int:
    flags = os.statvfs(path).f_flag
    relatime = MS_RELATIME if flags & _ST_RELATIME else 0
    return (flags & _LOCKED_FLAGS & ~MS_RELATIME) | relatime


def make_private(path: AnyPath, *, recursive: bool = False) -> None:
    """Stop mounts at ``path``, a mount point, from propagating either way."""
    mount(None, path, None, MS_PRIVATE | (MS_REC if recursive else 0))


def ensure_mountpoint_private(path: AnyPath) -> None:
    """Make the directory ``path`` a private mount, of itself when it is no mount point yet.

    What is mounted below it later then stays out of other mount namespaces (the seed's
    ``mountpk.MakePrivate``).
    """
    from lamina.kernel import mountinfo

    if not mountinfo.is_mountpoint(path):
        bind(path, path)
    make_private(path)


def unmount(target: AnyPath, *, lazy: bool = False) -> None:
    """Unmount what is on top at ``target``, never following a last symlink.

    ``lazy`` detaches it now, with what is mounted below, and lets go when nobody uses it.
    """
    umount2(target, UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0))
