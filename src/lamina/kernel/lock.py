"""Lock files: flock(2) on a file that may be deleted by whoever holds it."""

from __future__ import annotations

import fcntl
import os


def try_lock(path: str) -> int | None:
    """An fd that holds the lock file ``path``, made if need be; None when another has it.

    None also when the holder before us deleted the file meanwhile: what we got then counts for
    nobody. Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def unlock(fd: int) -> None:
    """Unlock and close. A child that another thread forks has a copy of the fd until it execs,
    so that closing ours alone would leave the file locked."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
