"""Loop devices: a file as a block device (loop(4), include/uapi/linux/loop.h).

A device made here has ``autoclear``: it goes when the last user closes it, be that the descriptor
returned or a mount. So none stays behind, whatever happens to the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from lamina.kernel._syscall import AnyPath

LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS64 = 0x4C04
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82

LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16

CONTROL = "/dev/loop-control"

_INFO = struct.Struct("@QQQQQIIII64s64s32s2Q")  # struct loop_info64
_CONFIG_HEAD = struct.Struct("@II")  # struct loop_config: fd, block size; then the info
_CONFIG_TAIL = bytes(64)
_ATTEMPTS = 64
_BLOCK_SIZE = 512  # with direct I/O the kernel might take more, and no smaller block be readable


def get_free(control_fd: int) -> int:
    """LOOP_CTL_GET_FREE: the number of a device that is free just now, made if need be."""
    return fcntl.ioctl(control_fd, LOOP_CTL_GET_FREE)


def configure(loop_fd: int, file_fd: int, flags: int, block_size: int = 0) -> None:
    """LOOP_CONFIGURE, Linux 5.8: EBUSY when the device is in use, EINVAL for direct I/O that the
    file's file system can't do at this block size (0: what the kernel finds best)."""
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    config = _CONFIG_HEAD.pack(file_fd, block_size) + info + _CONFIG_TAIL
    fcntl.ioctl(loop_fd, LOOP_CONFIGURE, config)


def set_fd(loop_fd: int, file_fd: int) -> None:
    """LOOP_SET_FD: as configure, in kernels that have no such call."""
    fcntl.ioctl(loop_fd, LOOP_SET_FD, file_fd)


def set_status(loop_fd: int, flags: int) -> None:
    """LOOP_SET_STATUS64: of the flags only autoclear can be set."""
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    fcntl.ioctl(loop_fd, LOOP_SET_STATUS64, info)


def clear_fd(loop_fd: int) -> None:
    """LOOP_CLR_FD: let go of the file, now or when the last user is gone."""
    fcntl.ioctl(loop_fd, LOOP_CLR_FD)


# A helper without policy.


def attach(path: AnyPath, *, direct_io: bool = True) -> tuple[int, str]:
    """A read-only loop device on the file ``path``: an open descriptor of it, and its name.

    The device lives until the descriptor is closed and nothing mounted is left on it. Direct I/O
    (no second copy in the page cache) is used where the file's file system can. Raises OSError:
    FileNotFoundError without loop devices.
    """
    flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR
    file_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            if direct_io:
                try:
                    return _attach(control, file_fd, flags | LO_FLAGS_DIRECT_IO)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
            return _attach(control, file_fd, flags)
        finally:
            os.close(control)
    except OSError as error:
        error.filename = error.filename or os.fsdecode(path)
        raise
    finally:
        os.close(file_fd)


def _attach(control: int, file_fd: int, flags: int) -> tuple[int, str]:
    """Take the first free device that no other process takes meanwhile."""
    for _ in range(_ATTEMPTS):
        name = f"/dev/loop{get_free(control)}"
        loop_fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _configure(loop_fd, file_fd, flags)
        except OSError as error:
            os.close(loop_fd)
            if error.errno != errno.EBUSY:
                raise
        else:
            return loop_fd, name
    raise OSError(errno.EBUSY, "no loop device stays free", CONTROL)


def _configure(loop_fd: int, file_fd: int, flags: int) -> None:
    try:
        configure(loop_fd, file_fd, flags, _BLOCK_SIZE)
    except OSError as error:
        # What an unknown ioctl is, before Linux 5.8: EINVAL of the loop driver, or ENOTTY.
        if error.errno not in (errno.EINVAL, errno.ENOTTY) or flags & LO_FLAGS_DIRECT_IO:
            raise
        set_fd(loop_fd, file_fd)
        try:
            set_status(loop_fd, LO_FLAGS_AUTOCLEAR)
        except OSError:
            clear_fd(loop_fd)
            raise
