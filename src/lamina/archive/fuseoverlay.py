"""The writable branch that fuse-overlayfs leaves, and its way back to AUFS's format.

fuse-overlayfs reads AUFS whiteouts in its branches, but writes its own marks beside them
(seen with 1.10):

- a whiteout is a device 0:0, as overlayfs has it;
- a directory that took the place of a lower one has an ``opaque`` attribute, a file
  ``.wh..wh..opq`` and a stray device called ``.wh..opq``;
- a file that was copied up has the attribute ``user.fuseoverlayfs.origin``.

The attributes are ``trusted.overlay.*`` as root, ``user.fuseoverlayfs.*`` otherwise.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

from lamina.archive.descent import Tree
from lamina.archive.stack import walk
from lamina.archive.whiteout import (
    AUFS,
    HIDDEN,
    PLAIN,
    WHITEOUT_PREFIX,
    Hidden,
    Listing,
    View,
)
from lamina.kernel import xattr
from lamina.kernel.path import fd_path

_PREFIXES = ("user.fuseoverlayfs.", "trusted.overlay.", "user.overlay.")
_OPAQUE_NAMES = tuple(prefix + "opaque" for prefix in _PREFIXES)


class _FuseOverlay(View):
    """AUFS's format and fuse-overlayfs's marks, mixed as they may be."""

    def listing(self, dir_fd: int) -> Listing:
        aufs = AUFS.listing(dir_fd)
        devices = set(_devices(dir_fd))
        names = [name for name in aufs.names if name not in devices]
        hidden = {name for name in devices if not name.startswith(WHITEOUT_PREFIX)}
        opaque = aufs.opaque or _has_opaque_mark(dir_fd)
        return Listing(opaque, sorted(hidden.union(aufs.whiteouts)), names)

    def lookup(self, dir_fd: int, name: bytes) -> os.stat_result | Hidden | None:
        status = AUFS.lookup(dir_fd, name)
        return HIDDEN if isinstance(status, os.stat_result) and _is_mark(status) else status

    def is_opaque(self, dir_fd: int) -> bool:
        return AUFS.is_opaque(dir_fd) or _has_opaque_mark(dir_fd)

    def private_xattr(self, name: str) -> bool:
        return name.startswith(_PREFIXES)


FUSE: Final[View] = _FuseOverlay()
"""For reading a branch as it is, mounted or not."""


def settle(branch: Tree) -> None:
    """Rewrite a branch that is not mounted into AUFS's format, in place.

    May be interrupted and run again: a mark is written before the one it stands for goes.
    Directories keep their times. Raises OSError.
    """
    for node in walk([branch], PLAIN):
        if node.fd >= 0:
            _settle_directory(node.fd, top=node.depth == 0)
        elif node.status is not None and not _is_mark(node.status):
            _strip(fd_path(node.dir_fd, node.name))


def _settle_directory(fd: int, *, top: bool) -> None:
    status = os.fstat(fd)
    for name in _devices(fd):
        if not name.startswith(WHITEOUT_PREFIX):
            AUFS.write_whiteout(fd, name)
        os.unlink(name, dir_fd=fd)
    if _has_opaque_mark(fd) and not top:
        AUFS.set_opaque(fd)
    _strip(fd)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _devices(dir_fd: int) -> Iterator[bytes]:
    """The names of devices 0:0 in a directory; all listed before the first is given."""
    with os.scandir(dir_fd) as entries:
        odd = [
            os.fsencode(entry.name)
            for entry in entries
            if not (
                entry.is_file(follow_symlinks=False)
                or entry.is_dir(follow_symlinks=False)
                or entry.is_symlink()
            )
        ]
    for name in odd:
        if _is_mark(os.stat(name, dir_fd=dir_fd, follow_symlinks=False)):
            yield name


def _is_mark(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _has_opaque_mark(dir_fd: int) -> bool:
    return any(name in _OPAQUE_NAMES for name in xattr.list_all(dir_fd))


def _strip(file: int | bytes) -> None:
    for name in xattr.list_all(file):
        if name.startswith(_PREFIXES):
            xattr.remove(file, name)
