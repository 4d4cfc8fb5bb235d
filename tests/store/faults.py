"""Let a process die, or be interrupted, before the Nth of its calls that change something."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

_NAMES = frozenset(
    """
    rename replace link symlink mkdir rmdir unlink open write fsync chmod chown lchown utime
    mknod mkfifo truncate ftruncate execute executemany remove
    """.split()  # noqa: SIM905 - to be read by people
)
_OWNERS = ("posix", "_io", "builtins")


class Fault:
    """Counts the calls of this thread; ``strike`` is called before number ``at``."""

    def __init__(self, at: int, strike: Callable[[], None]) -> None:
        self.count = 0
        self._at = at
        self._strike = strike

    def __enter__(self) -> Fault:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _seen(self, frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call" or called.__name__ not in _NAMES or not _changes(called):
            return
        self.count += 1
        if self.count == self._at:
            sys.setprofile(None)
            self._strike()


def _changes(called: Any) -> bool:
    """ctypes' calls (mounts) come by no name of their own and are between the counted ones."""
    owner = getattr(called, "__self__", None)
    return called.__module__ in _OWNERS or isinstance(owner, sqlite3.Connection)


def die() -> None:
    """As kill -9 or a crash."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """As Ctrl-C."""
    raise KeyboardInterrupt


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked child; its wait status as an exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
