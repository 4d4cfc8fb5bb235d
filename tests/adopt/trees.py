"""Trees as ``expected.json`` describes them, and what a source must look like before and after."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

_TYPES = {
    stat.S_IFDIR: "dir",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


def tree(top: Path) -> dict[str, Entry]:
    """What is below ``top``, by path: the fields that have to be equal."""
    found: dict[str, Entry] = {}
    links: dict[tuple[int, int], list[str]] = {}
    for directory, directories, names in os.walk(os.fsencode(top)):
        for name in (*directories, *names):
            full = os.path.join(directory, name)
            path = os.fsdecode(os.path.relpath(full, os.fsencode(top)))
            status = os.lstat(full)
            found[path] = _entry(full, status)
            if stat.S_ISREG(status.st_mode):  # fuse-overlayfs says of some that they have one link
                links.setdefault((status.st_dev, status.st_ino), []).append(path)
    for paths in links.values():
        if len(paths) > 1:
            for path in paths:
                found[path]["links"] = sorted(paths)
    return found


def _entry(full: bytes, status: os.stat_result) -> Entry:
    kind = _TYPES[stat.S_IFMT(status.st_mode)]
    entry: Entry = {
        "type": kind,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
    }
    if kind == "file":
        entry["size"] = status.st_size
        entry["sha256"] = hashlib.sha256(Path(os.fsdecode(full)).read_bytes()).hexdigest()
    elif kind == "symlink":
        entry["target"] = os.fsdecode(os.readlink(full))
    elif kind in ("char", "block"):
        entry["rdev"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    xattrs = {
        name: base64.b64encode(os.getxattr(full, name, follow_symlinks=False)).decode()
        for name in os.listxattr(full, follow_symlinks=False)
        if not name.startswith("trusted.overlay.")
    }
    if xattrs:
        entry["xattrs"] = xattrs
    return entry


def expected(described: dict[str, Any]) -> dict[str, Entry]:
    """A tree of expected.json, without what AUFS lets through by its fault."""
    leaks = set(described["aufs_leaks"])
    found = {}
    for whole in described["tree"]:
        if whole["path"] == "." or whole["path"] in leaks:
            continue
        entry = {key: value for key, value in whole.items() if key not in ("path", "nlink")}
        if entry["type"] != "file":
            entry.pop("size", None)
        if len(entry.get("links", ())) < 2:
            entry.pop("links", None)
        found[whole["path"]] = entry
    return found


def differences(ours: dict[str, Entry], theirs: dict[str, Entry]) -> list[str]:
    """One line for each path that is not the same, hard links aside where one has none."""
    lines = []
    for path in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(path), theirs.get(path)
        if one is None or other is None:
            lines.append(f"{path!r}: only in {'theirs' if one is None else 'ours'}")
            continue
        lines += [
            f"{path!r}: {key} is {one.get(key)!r}, expected {other.get(key)!r}"
            for key in sorted((one.keys() | other.keys()) - {"links"})
            if one.get(key) != other.get(key)
        ]
    return lines


def fingerprint(top: Path) -> dict[str, tuple[object, ...]]:
    """All of a tree that must not change, access times among it; looked at without changing them.

    Link counts and what comes with them (ctime) are not: hard links are the one thing that may be
    made. Links are not read, which would change their access time; their own times tell.
    """
    found: dict[str, tuple[object, ...]] = {}
    waiting = [top]
    while waiting:
        path = waiting.pop()
        status = path.lstat()
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            names = _listed(path)
            waiting += [path / name for name in names]
            content = sorted(names)
        elif stat.S_ISREG(status.st_mode):
            content = _digest(path)
        found[str(path.relative_to(top))] = (
            status.st_ino,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_size,
            status.st_mtime_ns,
            status.st_atime_ns,
            status.st_rdev,
            content,
            [(name, os.getxattr(path, name, follow_symlinks=False))
             for name in sorted(os.listxattr(path, follow_symlinks=False))],
        )  # fmt: skip
    return found


def _listed(path: Path) -> list[str]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _digest(path: Path) -> str:
    with open(os.open(path, os.O_RDONLY | os.O_NOATIME), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
