"""Roots to run things in: a handful of the machine's own programs with their libraries."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = (
    "cat", "chown", "echo", "grep", "id", "kill", "ls", "mkdir", "mknod", "readlink", "rm",
    "sh", "sleep", "stat", "stty", "touch", "true", "tty", "uname",
)  # fmt: skip


def make_small_root(root: Path, programs: Sequence[str] = PROGRAMS) -> None:
    """``root`` with /bin and the libraries, and nothing else: no /dev, /proc, /etc."""
    (root / "bin").mkdir(parents=True)
    libraries: set[str] = set()
    for name in programs:
        source = shutil.which(name)
        assert source is not None, name
        shutil.copy(source, root / "bin" / name)
        listed = subprocess.run(["ldd", source], check=False, capture_output=True, text=True).stdout
        libraries |= {word for word in listed.split() if word.startswith("/")}
    for library in libraries:
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)


def tree(root: Path) -> dict[str, tuple[int, ...]]:
    """Every name below ``root`` with its mode, owner, size and mtime."""
    found: dict[str, tuple[int, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in (".", *names, *files):
            path = os.path.join(directory, name)
            s = os.lstat(path)
            key = os.path.relpath(path, root)
            found[key] = (s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_mtime_ns)
    return found
