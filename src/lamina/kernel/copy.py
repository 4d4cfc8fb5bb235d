"""Moving bytes between files without reading them here where the kernel can do that."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable

from lamina.kernel._syscall import c_int, check, function

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), ioctl_ficlone(2)
_FIDEDUPERANGE = 0xC0189436  # _IOWR(0x94, 54, struct file_dedupe_range), ioctl_fideduperange(2)
_DEDUPE = struct.Struct("=QQHHIqQQiI")  # with one struct file_dedupe_range_info
_DIFFERS = 1  # FILE_DEDUPE_RANGE_DIFFERS
_PIECE = 1 << 30  # bytes asked of one call; the kernel does at most 2 GiB less a page
_BUFFER = 256 << 10

_UNABLE = frozenset(
    {
        errno.EXDEV,  # two file systems, or Linux before 5.3
        errno.EINVAL,  # an end that can't be spliced, or overlapping ranges
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.ENOTTY,
        errno.EBADF,  # the target was opened with O_APPEND
        errno.ETXTBSY,
        errno.EPERM,  # seccomp, or a target made immutable: then writing says so again
    }
)

_syncfs = function("syncfs", None, c_int)


def syncfs(fd: int) -> None:
    """syncfs(2): what was written to the file system of ``fd`` is safely down, else OSError."""
    check(_syncfs(fd))


def reflink(src_fd: int, dst_fd: int) -> bool:
    """Make the target share the source's blocks; False where the file system can't (FICLONE)."""
    try:
        fcntl.ioctl(dst_fd, _FICLONE, src_fd)
    except OSError as error:
        if error.errno in _UNABLE:
            return False
        raise
    return True


def dedupe_range(src_fd: int, src_offset: int, length: int, dst_fd: int, dst_offset: int) -> int:
    """Let a range of the target share the source's blocks if the bytes are equal (FIDEDUPERANGE).

    How many bytes do now, of the first ones: fewer than ``length`` where the bytes differ from
    there on. Offsets are multiples of the file system's block; so is the length, unless both ranges
    end with their files. The kernel compares, with both files locked. Needs the right to write the
    target, but no descriptor that can. Raises OSError: EOPNOTSUPP where the file system can't,
    EXDEV, EINVAL.
    """
    done = 0
    while done < length:
        argument = _DEDUPE.pack(
            src_offset + done, length - done, 1, 0, 0, dst_fd, dst_offset + done, 0, 0, 0
        )
        answer = _DEDUPE.unpack(fcntl.ioctl(src_fd, _FIDEDUPERANGE, argument))
        count, status = answer[7], answer[8]
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        if status == _DIFFERS or not count:
            break
        done += count
    return done


def copy_range(src_fd: int, dst_fd: int, length: int, src_offset: int | None = None) -> int:
    """Copy up to ``length`` bytes to the target's position; returns how many there were.

    From ``src_offset``, or from the source's position, which then moves. In the kernel by
    copy_file_range(2) or sendfile(2) where they can, else through a buffer of 256 KiB.
    """
    done = 0
    for step in (_by_copy_file_range, _by_sendfile, _by_buffer):
        try:
            while done < length:
                offset = None if src_offset is None else src_offset + done
                count = step(src_fd, dst_fd, min(length - done, _PIECE), offset)
                if count == 0:
                    break
                done += count
        except OSError as error:
            if error.errno not in _UNABLE or step is _by_buffer:
                raise
            continue
        # Some file systems (procfs) have copy_file_range say 0 for a file that can be read.
        if done:
            break
    return done


_Step = Callable[[int, int, int, int | None], int]


def _by_copy_file_range(src_fd: int, dst_fd: int, count: int, offset: int | None) -> int:
    return os.copy_file_range(src_fd, dst_fd, count, offset)


def _by_sendfile(src_fd: int, dst_fd: int, count: int, offset: int | None) -> int:
    return os.sendfile(dst_fd, src_fd, offset, count)


def _by_buffer(src_fd: int, dst_fd: int, count: int, offset: int | None) -> int:
    count = min(count, _BUFFER)
    data = os.read(src_fd, count) if offset is None else os.pread(src_fd, count, offset)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(dst_fd, rest) :]
    return len(data)


def copy_file(src_fd: int, dst_fd: int, size: int) -> None:
    """Copy a regular file of ``size`` bytes into an empty one, holes kept as holes.

    Shares blocks where the file system can. Both positions are left anywhere. A source that
    shrinks meanwhile leaves zeros at the end, as a reader would have seen.
    """
    if size == 0 or reflink(src_fd, dst_fd):
        return
    status = os.fstat(src_fd)
    if status.st_blocks * 512 >= size:
        copied = copy_range(src_fd, dst_fd, size, 0)
        if copied < size:
            os.ftruncate(dst_fd, size)
        return
    os.ftruncate(dst_fd, size)
    for offset, length in data_ranges(src_fd, size):
        os.lseek(dst_fd, offset, os.SEEK_SET)
        copy_range(src_fd, dst_fd, length, offset)


def data_ranges(fd: int, size: int) -> list[tuple[int, int]]:
    """(offset, length) of what is not hole in the first ``size`` bytes, in order (lseek(2)).

    One range of everything where the file system can't say. Moves the position of ``fd``.
    """
    ranges = []
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            if start >= size:
                break
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but hole from here on
                break
            if error.errno != errno.EINVAL:
                raise
            return [(0, size)]
        ranges.append((start, end - start))
    return ranges
