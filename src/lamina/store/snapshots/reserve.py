"""Room on a full disk for removals: they write a little before they free much."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_SIZE = 1 << 20
"""Bytes: SQLite's log written back, a transaction's pages in it, and a directory or two."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a call fails with that finds no room."""


class Reserve:
    """A file that is there to be deleted when nothing else can be written.

    ``economize`` is called then: it may write a little so that less need be written later.
    """

    def __init__(self, path: Path, economize: Callable[[], None]) -> None:
        self._path = path
        self._economize = economize
        self._mutex = threading.Lock()
        self._there = False
        self._fill()

    def through(self, action: Callable[[], T]) -> T:
        """Do something; where there is no room, again from the start, with what the reserve had.

        Raises what ``action`` does.
        """
        try:
            result = action()
        except OSError as error:
            if error.errno not in FULL or not self._give():
                raise
            result = action()
        if not self._there:
            self._fill()
        return result

    def _give(self) -> bool:
        """Delete the file; false if it is gone already."""
        with self._mutex:
            given, self._there = self._there, False
            self._path.unlink(missing_ok=True)
        if given:
            self._economize()
        return given

    def _fill(self) -> None:
        with self._mutex:
            fd = -1
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.posix_fallocate(fd, 0, _SIZE)
                self._there = True
            except OSError:  # later, when there is room
                self._path.unlink(missing_ok=True)
            finally:
                if fd >= 0:
                    os.close(fd)
