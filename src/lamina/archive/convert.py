"""Turning a layer's markers from one whiteout format into another, in place."""

from __future__ import annotations

import os
import stat

from lamina.archive.stack import Node, NodeKind, walk
from lamina.archive.whiteout import AUFS, WHITEOUT_PREFIX, Format, same_xattr
from lamina.errors import InvalidArchive
from lamina.kernel import xattr
from lamina.kernel.path import fd_path
from lamina.kernel.remove import remove_tree

_STAGED = b".lamina-whiteout"


def convert(tree: int | str | bytes | os.PathLike[str], source: Format, target: Format) -> None:
    """Rewrite the markers of a layer directory, which nobody else may use meanwhile.

    What the layer shows and hides stays the same. Of AUFS, a live entry beside its own whiteout
    goes (AUFS does not show it), and so do ``.wh..wh.*`` bookkeeping and marks of no effect; of
    overlayfs, its private attributes and those that the target would not have under the same name.
    Directories keep their times.

    May be interrupted and run again: a mark is written before the one it stands for is removed.
    Raises OSError; LayerBroken where part of the layer lies in another one (overlayfs's
    ``redirect_dir`` and ``metacopy``); InvalidArchive for names that AUFS can't hide, and, before
    anything is changed, for entries that it would read as marks.
    """
    if source is target:
        return
    if target is AUFS:
        _check_names(tree, source)
    for node in walk([tree], source):
        if node.fd >= 0:
            _directory(node, source, target)
        elif node.status is not None:
            _strip(fd_path(node.dir_fd, node.name), source, target, node.path)


def _check_names(tree: int | str | bytes | os.PathLike[str], source: Format) -> None:
    """That no entry is called as AUFS calls its marks: such a file would become a whiteout."""
    for node in walk([tree], source):
        if node.name.startswith(WHITEOUT_PREFIX) and node.kind is NodeKind.ENTRY:
            status = node.status
            # What fuse-overlayfs, or an interrupted conversion, wrote is a mark indeed.
            if status is None or status.st_size or not stat.S_ISREG(status.st_mode):
                raise InvalidArchive("AUFS would read this entry as a mark of its own", node.path)


def _directory(node: Node, source: Format, target: Format) -> None:
    fd = node.fd
    status = os.fstat(fd)
    listing = source.listing(fd)
    for name in listing.whiteouts:
        # fuse-overlayfs leaves whiteouts of AUFS markers behind: they hide nothing of a layer.
        if not name.startswith(WHITEOUT_PREFIX):
            _write(fd, name, target)
        if source.marks_name != target.marks_name:
            source.remove_whiteout(fd, name)
    if listing.opaque and node.depth > 0:
        target.set_opaque(fd)
    source.clear_opaque(fd)
    for name in map(os.fsencode, os.listdir(fd)):
        if source.is_meta(name) or name == _STAGED:
            remove_tree(fd_path(fd, name))
    _strip(fd, source, target, node.path)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _write(fd: int, name: bytes, target: Format) -> None:
    """Write a whiteout, over what the directory has under that name in another format."""
    try:
        target.write_whiteout(fd, name)
    except FileExistsError:
        # A live entry that its AUFS whiteout hides, or the attribute form of another overlayfs.
        # A device is a whiteout to both; put in place at once, the name is never unhidden.
        remove_tree(fd_path(fd, _STAGED))
        os.mknod(_STAGED, stat.S_IFCHR, 0, dir_fd=fd)
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            remove_tree(fd_path(fd, name))
        os.rename(_STAGED, name, src_dir_fd=fd, dst_dir_fd=fd)


def _strip(file: int | bytes, source: Format, target: Format, path: bytes) -> None:
    """Remove the attributes that the target, whose marks are written, does not have as they are."""
    for name in xattr.list_all(file):
        if not target.private_xattr(name) and not same_xattr(name, source, target):
            source.check_xattr(name, path)
            xattr.remove(file, name)
