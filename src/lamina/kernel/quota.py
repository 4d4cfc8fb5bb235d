"""Project quotas of xfs, and of ext4 where its ``project`` feature is on.

A directory is given a project id that its new files inherit (FS_IOC_FSSETXATTR), and the
project a limit of blocks (quotactl(2)), as Docker's ``quota/projectquota.go`` does. Limits go
through quotactl_fd(2), Linux 5.14, so that no block device has to be found or made.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from lamina.kernel import _syscall
from lamina.kernel._syscall import AnyPath, c_int, c_uint, c_void_p, check

FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200
_FSXATTR = struct.Struct("=IIIII8x")  # xflags, extsize, nextents, projid, cowextsize

PRJQUOTA = 2
Q_XGETQUOTA = 0x5803
Q_XSETQLIM = 0x5804
Q_XGETQSTAT = 0x5805
FS_QUOTA_PDQ_ENFD = 1 << 5
FS_DQUOT_VERSION = 1
FS_PROJ_QUOTA = 2
FS_DQ_BSOFT = 1 << 2
FS_DQ_BHARD = 1 << 3
# struct fs_disk_quota: version, flags, fieldmask, id, block hard and soft, inode hard and
# soft, blocks, inodes; all block counts are of 512 bytes.
_DISK_QUOTA = struct.Struct("=bbHIQQQQQQ56x")
_BLOCK = 512

_quotactl_fd = _syscall.function(
    "quotactl_fd", _syscall.NR_QUOTACTL_FD, c_uint, c_uint, c_int, c_void_p
)


def get_project(path: AnyPath) -> int:
    """The project id of a directory; 0 is none."""
    return int(_get_attributes(path)[3])


def set_project(path: AnyPath, project: int) -> None:
    """Put the directory ``path`` and what is made in it from now on under ``project``."""
    xflags, extsize, nextents, _, cowextsize = _get_attributes(path)
    new = _FSXATTR.pack(xflags | FS_XFLAG_PROJINHERIT, extsize, nextents, project, cowextsize)
    _ioctl(path, FS_IOC_FSSETXATTR, new)


def set_limit(path: AnyPath, project: int, size: int) -> None:
    """Limit ``project`` on the file system of ``path`` to ``size`` bytes; 0 lifts the limit."""
    blocks = -(-size // _BLOCK)
    fields = FS_DQ_BHARD | FS_DQ_BSOFT
    quota = _DISK_QUOTA.pack(
        FS_DQUOT_VERSION, FS_PROJ_QUOTA, fields, project, blocks, blocks, 0, 0, 0, 0
    )
    _quotactl(path, Q_XSETQLIM, project, ctypes.create_string_buffer(quota, len(quota)))


def get_limit(path: AnyPath, project: int) -> tuple[int, int]:
    """(bytes used, limit in bytes or 0) of ``project`` on the file system of ``path``."""
    buffer = ctypes.create_string_buffer(_DISK_QUOTA.size)
    _quotactl(path, Q_XGETQUOTA, project, buffer)
    fields = _DISK_QUOTA.unpack(buffer.raw)
    return fields[8] * _BLOCK, fields[4] * _BLOCK


def supported(path: AnyPath) -> str | None:
    """None where directories like ``path`` can be limited, else why not, in one line."""
    try:
        _get_attributes(path)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return "the file system has no project ids (xfs and ext4 do)"
        return f"project ids: {error.strerror}"
    state = ctypes.create_string_buffer(256)
    try:
        _quotactl(path, Q_XGETQSTAT, 0, state)
    except OSError as error:
        return _refusal(error)
    (flags,) = struct.unpack_from("=H", state.raw, 2)
    if not flags & FS_QUOTA_PDQ_ENFD:
        return _NOT_ON
    return None


_NOT_ON = "project quota is not on (mount the file system with the option prjquota)"


def _refusal(error: OSError) -> str:
    if error.errno == errno.ENOSYS:
        return "the kernel has no quota support for this file system"
    if error.errno in (errno.ESRCH, errno.EINVAL, errno.EOPNOTSUPP):
        return _NOT_ON
    return f"project quota: {error.strerror}"


def _get_attributes(path: AnyPath) -> tuple[int, int, int, int, int]:
    return _FSXATTR.unpack(_ioctl(path, FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))


def _ioctl(path: AnyPath, request: int, argument: bytes) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
    finally:
        os.close(fd)


def _quotactl(path: AnyPath, command: int, project: int, data: object) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check(_quotactl_fd(fd, command << 8 | PRJQUOTA, project, data), path)
    finally:
        os.close(fd)
