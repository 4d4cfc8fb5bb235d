"""The ``size`` option of a layer: a limit in bytes, enforced by a project quota."""

from __future__ import annotations

import os
import re

from lamina.errors import OptionUnsupported
from lamina.kernel import quota

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_MAX_SIZE = 2**63 - 1  # of a file, and of all file systems that have quotas
_FIRST_PROJECT = 1 << 30  # out of the way of the small numbers that /etc/projects uses


def parse_size(text: str) -> int:
    """Bytes, from a number with k, m, g or t (powers of 1024) behind it.

    Raises:
        OptionUnsupported: it is no such number, zero, or more than there can be.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if not 0 < size <= _MAX_SIZE:
        raise OptionUnsupported(f"size: not a number of bytes: {text!r} (try 512M or 10G)")
    return size


def limit_size(directory: str, size: int) -> int:
    """Limit what is made below ``directory`` from now on to ``size`` bytes; returns the project.

    The project is numbered after the directory's inode, which nothing else on the file system
    has; a number in use already (inodes beyond 30 bits) gives way to the next.

    Raises:
        OptionUnsupported: the file system has no project quota, with the reason.
    """
    reason = quota.supported(directory)
    if reason is not None:
        raise OptionUnsupported(f"size: {reason}")
    project = _FIRST_PROJECT + os.stat(directory).st_ino % _FIRST_PROJECT
    while any(quota.get_limit(directory, project)):
        project += 1
    quota.set_limit(directory, project, size)
    quota.set_project(directory, project)
    return project


def lift_limit(directory: str | os.PathLike[str], project: int) -> None:
    """Forget the limit of a project whose files are gone, on the file system of ``directory``."""
    quota.set_limit(directory, project, 0)
