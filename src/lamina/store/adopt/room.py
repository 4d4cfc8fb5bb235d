"""Whether a file system has room for what is to come."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lamina.errors import StoreError

_PLENTY = 1 << 62


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes and files: what is needed, or what there is."""

    size: int
    files: int = 0


def available(place: Path) -> Room:
    """What there is on the file system of ``place``, for this user."""
    free = os.statvfs(place)
    # Some file systems (btrfs) make room for files as needed, and say 0 of 0.
    return Room(free.f_bavail * free.f_frsize, free.f_favail if free.f_files else _PLENTY)


def check(place: Path, need: Room, have: Room, hint: str) -> None:
    """Raise :class:`StoreError`, which ends with ``hint``, unless there is enough."""
    wanted = found = ""
    if need.size > have.size:
        wanted, found = _megabytes(need.size), _megabytes(have.size)
    elif need.files > have.files:
        wanted, found = f"{need.files:,} files", f"{have.files:,}"
    if wanted:
        raise StoreError(
            f"not enough room in {place}: it takes up to {wanted}, and {found} are free; {hint}"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
