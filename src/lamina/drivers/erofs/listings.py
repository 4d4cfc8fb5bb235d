"""What is in the directories of layers, listed again only where something changed."""

from __future__ import annotations

import os
import time
from collections.abc import Set

_SETTLED = 2_000_000_000
"""Nanoseconds after which a change shows by its time: no file system's clock is coarser."""

_KEPT = 10_000


class Listings:
    """The names in directories, at the cost of one stat(2) for each that is as it was.

    Any change of names in a directory, by whatever process, gives it another status-change time;
    one put in its place has another inode. Of a directory that changed just now nothing is said,
    as its next change might have the same time.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], Set[str]]] = {}

    def of(self, directory: str) -> Set[str] | None:
        """The names in ``directory``; None where to look for each is as well. Raises OSError."""
        status = os.stat(directory)
        state = status.st_dev, status.st_ino, status.st_ctime_ns
        known = self._known.get(directory)
        if known is not None and known[0] == state:
            return known[1]
        if time.time_ns() - status.st_ctime_ns < _SETTLED:
            return None
        if len(self._known) >= _KEPT:
            self._known.clear()
        names = frozenset(os.listdir(directory))
        self._known[directory] = state, names
        return names
