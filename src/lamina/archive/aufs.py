"""Where the kernel's aufs reads branches unlike every other union, and how a layer avoids it.

When the module looks a directory up for the first time (au_lkup_dentry in fs/aufs/dentry.c, at
least up to 6.1), it passes over what is no directory, and of several opaque marks in the merged
directories the lowest counts. So

- below a file that is itself hidden by a directory, the entries of a directory further down show;
- what only the upper of two opaque marks hides comes back.

Additional marks, which change nothing for other readers, keep these entries hidden.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lamina.archive.lookup import Lookup
from lamina.archive.stack import walk
from lamina.archive.whiteout import AUFS, OPAQUE


def mend(layer: str, lowers: Sequence[Path]) -> None:
    """Add to an AUFS branch, not mounted, the marks that the kernel needs; see the module.

    ``lowers``, topmost first, are the branches below. Directories keep their times. May be done
    again; raises OSError.
    """
    if not lowers:
        return
    with Lookup(lowers, AUFS) as below:
        for node in walk([layer], AUFS):
            if node.fd < 0 or not node.depth:
                continue
            found = below.find_path(node.path)
            if found is None:
                continue
            if not found.is_directory:
                _mark(node.fd, AUFS.set_opaque)
            elif AUFS.is_opaque(node.fd) and _marked(lowers, node.path):
                below.go(node.path)
                _mark(node.fd, partial(_hide, names=below.names()))


def _marked(lowers: Sequence[Path], path: bytes) -> bool:
    """Whether a lower branch has an opaque mark there, be it hidden by another one or not."""
    return any(os.path.lexists(b"/".join((os.fsencode(b), path, OPAQUE))) for b in lowers)


def _hide(fd: int, names: list[bytes]) -> None:
    for name in names:
        status = AUFS.lookup(fd, name)
        if status is None:
            AUFS.write_whiteout(fd, name)
        elif isinstance(status, os.stat_result) and stat.S_ISDIR(status.st_mode):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            child = os.open(name, flags, dir_fd=fd)
            try:
                _mark(child, AUFS.set_opaque)
            finally:
                os.close(child)


def _mark(fd: int, write: Callable[[int], None]) -> None:
    """Write marks into a directory that keeps its times."""
    status = os.fstat(fd)
    write(fd)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
