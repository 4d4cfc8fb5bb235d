"""Mounting EROFS: an index and the files that hold its data, as plain files or by loop devices.

Plain files can be mounted from Linux 6.12 on (CONFIG_EROFS_FS_BACKED_BY_FILE); before, and where
the files lie on a file system that can't be read so, each gets a loop device, which goes with the
mount. Blocks of 512 bytes need Linux 6.4.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from lamina.errors import MountError
from lamina.kernel import loop
from lamina.kernel._syscall import AnyPath
from lamina.kernel.mount import (
    MOUNT_ATTR_RDONLY,
    FsContext,
    move_mount,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FSTYPE = "erofs"

_SUPERBLOCK = 1024
_MAGIC = 0xE0F5E1E2
_EXTENDED = 1  # in i_format

_VALUE_MAX = 255  # of a string to fsconfig(2)
# What a kernel without file-backed mounts says: it wants a block device. EINVAL and EOPNOTSUPP are
# for file systems whose files it can't read this way.
_WANTS_LOOP = frozenset({errno.ENOTBLK, errno.EINVAL, errno.EOPNOTSUPP})


def open_mount(
    index: AnyPath,
    devices: Sequence[AnyPath] = (),
    *,
    attr: int = MOUNT_ATTR_RDONLY,
    use_loop: bool | None = None,
    label: str = "",
) -> int:
    """A detached mount of ``index`` with its ``devices``, in the order of its device table.

    For :func:`lamina.kernel.mount.move_mount`; gone when the descriptor is closed without one.
    ``attr`` is MOUNT_ATTR_*. ``label`` is an SELinux context for all files; a kernel without
    SELinux refuses it, on any file system. ``use_loop`` None: plain files, and loop devices where
    the kernel won't. Needs the new mount API, which every kernel has that reads such an index.
    Raises MountError, OSError.
    """
    if use_loop is not None:
        return (_open_by_loops if use_loop else _open_mount)(index, devices, attr, label)
    try:
        return _open_mount(index, devices, attr, label)
    except MountError as error:
        if error.errno not in _WANTS_LOOP:
            raise
        try:
            return _open_by_loops(index, devices, attr, label)
        except FileNotFoundError:
            error.kernel_log += ("no loop devices either: modprobe loop",)
            raise error from None


def mount_erofs(
    index: AnyPath,
    devices: Sequence[AnyPath],
    target: AnyPath | int,
    *,
    attr: int = MOUNT_ATTR_RDONLY,
    use_loop: bool | None = None,
) -> None:
    """:func:`open_mount`, attached at ``target`` (a path or a directory's fd)."""
    fd = open_mount(index, devices, attr=attr, use_loop=use_loop)
    try:
        move_mount(fd, target)
    except OSError as error:
        name = f"fd {target}" if isinstance(target, int) else os.fsdecode(target)
        raise MountError(error.errno or 0, "mount erofs", name) from None
    finally:
        os.close(fd)


class Head(NamedTuple):
    """What an index and its top directory begin with."""

    devices: int
    """How many files :func:`open_mount` wants beside the index."""
    mode: int
    """As st_mode has it."""
    uid: int
    gid: int


def read_head(index: AnyPath) -> Head:
    """What can be known of an index with extended inodes, as ours are, without mounting it.

    Layout: fs/erofs/erofs_fs.h in the kernel. Raises OSError, EUCLEAN for what is no such index.
    """
    fd = os.open(index, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.pread(fd, 128, _SUPERBLOCK)
        meta = _number(head, 40, 4) << (_number(head, 12, 1) & 31)
        top = os.pread(fd, 64, meta + 32 * _number(head, 14, 2))
    finally:
        os.close(fd)
    if _number(head, 0, 4) != _MAGIC or len(top) < 64 or not top[0] & _EXTENDED:
        raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN), os.fsdecode(index))
    return Head(_number(head, 86, 2), _number(top, 4, 2), _number(top, 24, 4), _number(top, 28, 4))


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def way_to_mount(index: AnyPath, devices: Sequence[AnyPath] = ()) -> str:
    """How this kernel mounts such files as these are, ``"file"`` or ``"loop"``: by trying.

    Raises MountError, with the kernel's reason, where it does neither.
    """
    try:
        os.close(open_mount(index, devices, use_loop=False))
    except MountError:
        os.close(open_mount(index, devices))
        return "loop"
    return "file"


def _open_mount(index: AnyPath, devices: Sequence[AnyPath], attr: int, label: str) -> int:
    fds: list[int] = []
    try:
        with FsContext(FSTYPE, index) as context:
            context.string("source", _name(index, fds))
            for device in devices:
                context.string("device", _name(device, fds))
            if label:
                context.string("context", label)
            context.flag("ro")
            context.create()
            return context.mount(attr)
    finally:
        for fd in fds:
            os.close(fd)


def _name(path: AnyPath, fds: list[int]) -> bytes:
    """A name for the file that fsconfig(2) takes: its path, or that of a descriptor of it."""
    name = os.fsencode(path)
    if len(name) <= _VALUE_MAX:
        return name
    fds.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
    return b"/proc/self/fd/%d" % fds[-1]


def _open_by_loops(index: AnyPath, devices: Sequence[AnyPath], attr: int, label: str) -> int:
    """The same on loop devices; once mounted, the mount alone holds them."""
    fds: list[int] = []
    try:
        names = []
        for path in (index, *devices):
            fd, name = loop.attach(path)
            fds.append(fd)
            names.append(name)
        return _open_mount(names[0], names[1:], attr, label)
    finally:
        for fd in fds:
            os.close(fd)
