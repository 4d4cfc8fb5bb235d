"""The time as file systems stamp their files with it."""

from __future__ import annotations

import os
import time

CLOCK_REALTIME_COARSE = 5
"""clock_gettime(2)'s, which time has no name for."""


def now(directory: bytes) -> int:
    """Now, in nanoseconds, as the file system of ``directory`` stamps its files.

    By a file without a name; where there is no such thing, the kernel's own coarse clock, which
    local file systems use (a network file system's server may have another).
    """
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    try:
        return os.fstat(fd).st_ctime_ns
    finally:
        os.close(fd)


def wait_past(moment_ns: int) -> None:
    """Until the clock of file systems has gone on: what changes from here on is told apart."""
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= moment_ns:
        time.sleep(0.0005)
