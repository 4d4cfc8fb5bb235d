"""What a layer directory in AUFS's format holds: how much, and what odd things."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from lamina.archive.descent import Tree
from lamina.archive.stack import walk
from lamina.archive.whiteout import (
    AUFS,
    META_PREFIX,
    OPAQUE,
    WHITEOUT_PREFIX,
    Hidden,
    Listing,
    View,
)

_BOOKKEEPING = frozenset({b".wh..wh.aufs", b".wh..wh.orph", b".wh..wh.plnk"})
_NOTED = 1000


@dataclass(slots=True)
class Survey:
    """The contents of one layer directory."""

    directories: int = 0
    files: int = 0
    """Entries and whiteouts that are no directories."""
    size: int = 0
    """Bytes of the regular files, a hard-linked one once."""
    allocated: int = 0
    """Bytes that those take on their disk."""
    odd: list[tuple[bytes, str]] = field(default_factory=list)
    """Names that AUFS itself would not have written, and what becomes of each; not all if many."""
    hidden: bool = False
    """Whether there are entries beside their own whiteouts, which AUFS does not show."""


def survey(tree: Tree) -> Survey:
    """Look at all of a layer directory; reads no file. Raises OSError."""
    found = Survey()
    linked: set[tuple[int, int]] = set()
    for node in walk([tree], _Noting(found)):
        status = node.status
        if node.fd >= 0:
            found.directories += 1
            continue
        found.files += 1
        if status is None:
            continue
        if stat.S_ISREG(status.st_mode):
            if status.st_nlink > 1:
                identity = (status.st_dev, status.st_ino)
                if identity in linked:
                    continue
                linked.add(identity)
            found.size += status.st_size
            found.allocated += status.st_blocks * 512
        elif stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            _note(found, node.path, "a device 0:0, which overlayfs takes for a whiteout")
    return found


def glance(top: str | os.PathLike[str]) -> Survey:
    """What costs no look at each file: directories, files, and ``hidden``. Raises OSError.

    If there is something hidden, also ``allocated``, with what is: such a layer is unpacked.
    """
    found = Survey()
    waiting = [os.fsencode(top)]
    while waiting:
        found.directories += 1
        marked: list[bytes] = []
        names: set[bytes] = set()
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(META_PREFIX):
                    continue
                names.add(name)
                if name.startswith(WHITEOUT_PREFIX):
                    marked.append(name)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    found.files += 1
        found.hidden |= any(name[len(WHITEOUT_PREFIX) :] in names for name in marked)
    if found.hidden:
        found.allocated = sum(
            os.lstat(os.path.join(directory, name)).st_blocks * 512
            for directory, _, names_there in os.walk(os.fsencode(top))
            for name in names_there
        )
    return found


class _Noting(View):
    """AUFS's format; what is odd in a directory is noted when it is listed."""

    def __init__(self, found: Survey) -> None:
        self._found = found
        self._top: bytes | None = None

    def listing(self, dir_fd: int) -> Listing:
        if self._top is None:
            self._top = _path(dir_fd)
        names = [os.fsencode(name) for name in os.listdir(dir_fd)]
        marks = [name for name in names if name.startswith(WHITEOUT_PREFIX) and name != OPAQUE]
        if not marks:
            return AUFS.listing(dir_fd) if OPAQUE in names else Listing(False, [], sorted(names))
        here, live = _path(dir_fd)[len(self._top) + 1 :], set(names)
        for name in sorted(marks):
            if (why := self._oddity(dir_fd, name, live)) is not None:
                _note(self._found, os.path.join(here, name), why)
        return AUFS.listing(dir_fd)

    def lookup(self, dir_fd: int, name: bytes) -> os.stat_result | Hidden | None:
        return AUFS.lookup(dir_fd, name)

    def _oddity(self, dir_fd: int, name: bytes, live: set[bytes]) -> str | None:
        if AUFS.is_meta(name):
            if name in _BOOKKEEPING:
                return None
            if name.startswith(META_PREFIX):
                return "no bookkeeping of AUFS's; left out"
            return "a whiteout that names no entry; left out"
        if name[len(WHITEOUT_PREFIX) :] in live:
            self._found.hidden = True
            return "a whiteout beside a live entry of its name"
        mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
        return None if stat.S_ISREG(mode) else "a whiteout that is no file"


def _note(found: Survey, path: bytes, why: str) -> None:
    if len(found.odd) < _NOTED:
        found.odd.append((path, why))


def _path(fd: int) -> bytes:
    return os.readlink(b"/proc/self/fd/%d" % fd)
