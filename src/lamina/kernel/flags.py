"""Inode flags, as lsattr(1) and chattr(1) show and set them (ioctl_iflags(2)).

Only for descriptors of regular files and directories: on a device the same ioctl numbers may mean
anything. File systems without flags raise OSError with ENOTTY or EOPNOTSUPP.
"""

from __future__ import annotations

import fcntl
import struct

_LONG = struct.Struct("@l")
# _IOR('f', 1, long) and _IOW('f', 2, long); the kernel reads and writes an int all the same.
_FS_IOC_GETFLAGS = 0x80006601 | _LONG.size << 16
_FS_IOC_SETFLAGS = 0x40006602 | _LONG.size << 16

FS_SYNC_FL = 0x00000008
FS_IMMUTABLE_FL = 0x00000010
FS_APPEND_FL = 0x00000020
FS_NODUMP_FL = 0x00000040
FS_NOATIME_FL = 0x00000080
FS_NOCOW_FL = 0x00800000
FS_PROJINHERIT_FL = 0x20000000


def get(fd: int) -> int:
    """The flags of a file, an OR of FS_*_FL."""
    answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_LONG.size))
    return int.from_bytes(answer[:4], "little" if _LONG.pack(1)[0] else "big")


def set(fd: int, flags: int) -> None:
    """Replace the flags of a file. CAP_LINUX_IMMUTABLE for the immutable and append-only ones."""
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _LONG.pack(flags))


def unprotect(fd: int) -> bool:
    """Clear the flags that forbid removal; whether there were any. Raises OSError if it may not."""
    flags = get(fd)
    if not flags & (FS_IMMUTABLE_FL | FS_APPEND_FL):
        return False
    set(fd, flags & ~(FS_IMMUTABLE_FL | FS_APPEND_FL))
    return True
