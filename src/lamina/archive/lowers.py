"""Looking names up in the layers below: which of them has it, as a mount of them would show.

For what a layer's archive leaves unsaid: the target of a hard link that only a lower layer has,
and the metadata of a directory that has entries in the archive but is none itself. Links are not
followed: archives name files by the directories they are in.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lamina.archive.placement import OPEN_DIRECTORY, split
from lamina.archive.whiteout import HIDDEN, View

_OPEN_LAYER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Lowers:
    """The layer directories ``paths``, topmost first, read as ``view``."""

    def __init__(self, paths: Sequence[Path], view: View) -> None:
        self._paths = tuple(os.fsencode(path) for path in paths)
        self._view = view

    @contextmanager
    def find(self, path: bytes) -> Iterator[tuple[int, bytes, os.stat_result] | None]:
        """The directory (open within the block), last component and status of the topmost."""
        fd = -1
        found: os.stat_result | None = None
        head, base = split(path)
        for layer in self._paths:
            fd, visible = self._open_directory(layer, head)
            if fd >= 0:
                status = self._view.lookup(fd, base) if base else os.fstat(fd)
                visible = visible and status is None
                found = None if status is HIDDEN else status
            if not visible:
                break
            if fd >= 0:
                os.close(fd)
                fd = -1
        try:
            yield (fd, base or b".", found) if found is not None else None
        finally:
            if fd >= 0:
                os.close(fd)

    def top_names(self) -> set[bytes]:
        """Names at the top that a mount of these layers would show."""
        shown: set[bytes] = set()
        hidden: set[bytes] = set()
        for layer in self._paths:
            fd = os.open(layer, _OPEN_LAYER)
            try:
                listing = self._view.listing(fd)
            finally:
                os.close(fd)
            shown.update(name for name in listing.names if name not in hidden)
            hidden.update(listing.whiteouts)
        return shown

    def _open_directory(self, layer: bytes, path: bytes) -> tuple[int, bool]:
        """(descriptor or -1, whether layers further down are seen in this directory)."""
        fd = os.open(layer, _OPEN_LAYER)
        visible = True
        try:
            for part in path.split(b"/") if path else ():
                status = self._view.lookup(fd, part)
                if status is None or status is HIDDEN or not stat.S_ISDIR(status.st_mode):
                    os.close(fd)
                    return -1, visible and status is None
                fd, above = os.open(part, OPEN_DIRECTORY, dir_fd=fd), fd
                os.close(above)
                visible = visible and not self._view.is_opaque(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd, visible
