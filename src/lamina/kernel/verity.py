"""fs-verity: files that the kernel verifies whenever they are read, and that can't be written any
more (Documentation/filesystems/fsverity.rst).

ext4 and f2fs have it where the file system was made with the feature, btrfs always has (Linux
5.15); the kernel needs CONFIG_FS_VERITY. The digest is that of a Merkle tree over the file, with
blocks of 4 KiB, SHA-256 and no salt, so that equal files have the same one everywhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

FS_IOC_ENABLE_VERITY = 0x40806685  # _IOW('f', 133, struct fsverity_enable_arg)
FS_IOC_MEASURE_VERITY = 0xC0046686  # _IOWR('f', 134, struct fsverity_digest)

BLOCK = 4096

_SHA256 = 1
_ENABLE = struct.Struct("=IIIIQIIQ88x")  # struct fsverity_enable_arg: no salt, no signature
_DIGEST = struct.Struct("=HH64s")
_NAMES = {1: "sha256", 2: "sha512"}
_ABSENT = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS})


def enable(fd: int) -> bool:
    """FS_IOC_ENABLE_VERITY of a file that nobody has open for writing; reads it through.

    True also for a file that has it already. False where the kernel or the file system has no
    fs-verity. Raises OSError: ETXTBSY for a file open for writing, EROFS, ENOSPC and the like.
    """
    argument = _ENABLE.pack(1, _SHA256, BLOCK, 0, 0, 0, 0, 0)
    try:
        fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, argument)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return True
        if error.errno in _ABSENT:
            return False
        raise
    return True


def measure(fd: int) -> str | None:
    """FS_IOC_MEASURE_VERITY: the file's fs-verity digest, ``sha256:...``; None if it has none.

    Raises OSError: ENOTTY or EOPNOTSUPP (:func:`is_absent`) where there is no fs-verity at all.
    """
    argument = _DIGEST.pack(0, 64, b"")
    try:
        answer = fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, argument)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    algorithm, size, digest = _DIGEST.unpack(answer)
    return f"{_NAMES.get(algorithm, algorithm)}:{digest[:size].hex()}"


def is_absent(error: OSError) -> bool:
    """Whether an error says that the kernel or the file system has no fs-verity."""
    return error.errno in _ABSENT


def supported(directory: str | os.PathLike[str]) -> bool:
    """Whether files in a directory can have fs-verity: tried with one that has no name."""
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, b"x")
        measure(fd)
    except OSError as error:
        if is_absent(error):
            return False
        raise
    finally:
        os.close(fd)
    return True
