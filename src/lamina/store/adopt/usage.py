"""Telling whether a dockerd is at work on a root.

dockerd leaves no lock on its root as a whole, but keeps databases below it open and locked
(flock(2), by bbolt) as long as it runs. That is seen from any namespace, and the other way round
a dockerd does not start while someone else has them locked. Besides, a dockerd that has only
begun may have none of them yet, and mounts may stand that one left which was killed.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from lamina.errors import StoreError
from lamina.kernel.mountinfo import mounts_below
from lamina.oci.docker import Files

_DATABASES = (
    "volumes/metadata.db",
    "buildkit/cache.db",
    "buildkit/containerdmeta.db",
    "buildkit/metadata_v2.db",
    "buildkit/snapshots.db",
    "network/files/local-kv.db",
)
_STOP = "stop it first (systemctl stop docker docker.socket)"
"""The socket too, or the next client starts the daemon again."""
_DEFAULT_ROOT = "/var/lib/docker"
_ROOT_OPTIONS = ("--data-root", "--graph", "-g")


def lock(root: Path, files: Files, held: ExitStack, *, alone: bool) -> None:
    """Refuse a root that a dockerd uses, and keep one from starting on it until ``held`` ends.

    ``alone`` also keeps out others who only read; these see it by a lock on the root itself.
    Raises StoreError.
    """
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=files.fd)
    held.callback(os.close, top)
    try:
        fcntl.flock(top, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(f"{root} is in use by another adoption") from None
    for name in _DATABASES:
        try:
            file = held.enter_context(files.open(name))
        except OSError:
            continue
        try:
            fcntl.flock(file.fileno(), how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{root} is in use by a running dockerd ({name} is locked): {_STOP}"
            ) from None
    for pid in _daemons(root):
        raise StoreError(f"{root} is in use by dockerd, process {pid}: {_STOP}")
    for part in ("aufs/mnt", "containers"):
        for point in mounts_below(root / part):
            where = os.fsdecode(point.target)
            raise StoreError(f"{root} is in use: {point.fstype.decode()} is mounted at {where}")


def _daemons(root: Path) -> Iterator[int]:
    """Processes called dockerd that were told to use the root, or have a file open in it."""
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            if Path(f"/proc/{name}/comm").read_text().strip() != "dockerd":
                continue
            if _data_root(name) in (root, _unmapped(root)) or _has_open(name, root):
                yield int(name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


def _data_root(pid: str) -> Path | None:
    """What the command line says; None if the daemon's root directory is not ours."""
    if not os.path.samefile(f"/proc/{pid}/root", "/"):
        return None
    words = [os.fsdecode(w) for w in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    found = _DEFAULT_ROOT
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in _ROOT_OPTIONS:
            found = value if equals else "".join(words[place + 1 : place + 2])
    return Path(os.path.realpath(found))


def _unmapped(root: Path) -> Path:
    """What a daemon with ``--userns-remap`` was told: it uses the directory UID.GID in that."""
    return root.parent if re.fullmatch(r"\d+\.\d+", root.name) else root


def _has_open(pid: str, root: Path) -> bool:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if target.startswith(f"{root}/"):
            return True
    return False
