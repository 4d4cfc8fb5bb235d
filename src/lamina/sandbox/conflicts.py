"""What changed on the machine, since a fork of it began, where the fork would write.

The kernel sets a file's change time (ctime) whenever its content, metadata or names change, and
nobody can set it back. So what a fork's layer would replace or remove is compared with a time
that was taken on the same file system when the fork began (:mod:`lamina.sandbox.clock`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator

from lamina.archive.stack import Node, NodeKind, walk
from lamina.archive.whiteout import PLAIN, Format
from lamina.kernel import xattr
from lamina.kernel.path import fd_path


def conflicts(
    upper: bytes, target: bytes, fmt: Format, since_ns: int, changed: Container[bytes]
) -> Iterator[bytes]:
    """Paths below ``target`` (from its top, no leading slash) where layer and machine both changed.

    ``changed`` are the paths at which the layer differs from the machine: a file that was copied
    up and left as it was is no reason to refuse. Reported: what was changed, replaced or made
    since; a directory to be removed or replaced in which anything was; and what the layer changes
    that is gone, or whose parent is.
    """
    skip: bytes | None = None
    for node in walk([upper], fmt):
        if node.depth == 0 or (skip is not None and node.path.startswith(skip)):
            continue
        skip = None
        path = os.path.join(target, node.path)
        lower = _lstat(path)
        if node.fd >= 0 and not node.opaque and lower is not None and stat.S_ISDIR(lower.st_mode):
            if _metadata_conflict(node, lower, since_ns):
                yield node.path
            continue  # a directory on both sides: what matters is in it
        if node.fd >= 0:
            skip = node.path + b"/"  # new, or replaced with all that is in it
        if lower is None:
            if _was_there(node, fmt) and (node.fd >= 0 or _parent_changed(path, since_ns)):
                yield node.path
        elif (
            node.fd >= 0 or node.kind is NodeKind.WHITEOUT or node.path in changed
        ) and _changed_since(path, lower, since_ns):
            yield node.path


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _metadata_conflict(node: Node, lower: os.stat_result, since_ns: int) -> bool:
    """Whether a directory's own metadata changed on both sides (its ctime also tells of names)."""
    status = node.status
    assert status is not None
    if lower.st_ctime_ns <= since_ns:
        return False
    ours = (status.st_mode, status.st_uid, status.st_gid)
    return ours != (lower.st_mode, lower.st_uid, lower.st_gid)


def _was_there(node: Node, fmt: Format) -> bool:
    """Whether the layer's entry began as a copy of the machine's.

    Overlayfs notes where it copied from; it does so too when the copy then got another name.
    """
    if node.kind is NodeKind.WHITEOUT:
        return False
    file = node.fd if node.fd >= 0 else fd_path(node.dir_fd, node.name)
    return any(
        name.endswith(".overlay.origin") and fmt.private_xattr(name)
        for name in xattr.list_all(file)
    )


def _parent_changed(path: bytes, since_ns: int) -> bool:
    """Whether names came or went beside ``path``, or their directory did itself."""
    parent = _lstat(os.path.dirname(path))
    return parent is None or parent.st_ctime_ns > since_ns


def _changed_since(path: bytes, lower: os.stat_result, since_ns: int) -> bool:
    """Whether a file, or anything in a directory, changed."""
    if not stat.S_ISDIR(lower.st_mode):
        return lower.st_ctime_ns > since_ns
    return any(
        node.status is not None and node.status.st_ctime_ns > since_ns
        for node in walk([path], PLAIN)
    )
