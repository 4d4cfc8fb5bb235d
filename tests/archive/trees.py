"""A directory tree as a value, so that two can be compared in an assertion."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from lamina.kernel import xattr


def describe(root: Path | str, *, times: bool = True, links: bool = True) -> dict[bytes, Any]:
    """Everything that can be seen of a tree, by path ("" for the top); nothing is followed."""
    top = os.fsencode(root)
    found: dict[bytes, Any] = {}
    inodes: dict[tuple[int, int], bytes] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        full = top + b"/" + path if path else top
        status = os.lstat(full)
        kind = stat.S_IFMT(status.st_mode)
        about: dict[str, Any] = {
            "mode": oct(status.st_mode),
            "owner": (status.st_uid, status.st_gid),
            "xattrs": _attributes(full),
        }
        if times:
            about["mtime"] = status.st_mtime_ns
        if kind == stat.S_IFDIR:
            pending.extend(path + b"/" + name if path else name for name in os.listdir(full))
        elif links:
            about["same as"] = inodes.setdefault((status.st_dev, status.st_ino), path)
        if kind == stat.S_IFREG:
            about["content"] = _digest(full), status.st_size
        elif kind == stat.S_IFLNK:
            about["target"] = os.readlink(full)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            about["device"] = status.st_rdev
        found[path] = about
        pending.sort(reverse=True)
    return found


def differences(a: dict[bytes, Any], b: dict[bytes, Any]) -> list[str]:
    """What two trees differ in, for a message that can be read."""
    lines = []
    for path in sorted(a.keys() | b.keys()):
        left, right = a.get(path), b.get(path)
        if left != right:
            if left is not None and right is not None:
                keys = [
                    key for key in left.keys() | right.keys() if left.get(key) != right.get(key)
                ]
                left, right = ({key: side.get(key) for key in keys} for side in (left, right))
            lines.append(f"{path!r}: {left} != {right}")
    return lines


def _attributes(path: bytes) -> dict[str, bytes]:
    found = xattr.list_all(path)
    for mirror in ("trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"):  # XFS shows ACLs twice
        found.pop(mirror, None)
    return found


def _digest(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
