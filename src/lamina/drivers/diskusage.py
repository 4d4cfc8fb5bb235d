"""What a directory takes on disk, while others may write in it."""

from __future__ import annotations

import os

from lamina.drivers.base import DiskUsage

_BLOCK = 512
"""Bytes of ``st_blocks`` (stat(2)), whatever the file system's own blocks are."""


def disk_usage(top: str) -> DiskUsage:
    """Blocks and inodes of a tree, hard links once, other file systems not.

    What is deleted meanwhile is left out.

    Raises:
        FileNotFoundError: ``top`` itself is not there.
    """
    found = os.lstat(top)
    device = found.st_dev
    size, inodes = found.st_blocks * _BLOCK, 1
    linked: set[int] = set()
    waiting = [os.fsencode(top)]
    while waiting:
        for entry in _entries(waiting.pop()):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if status.st_dev != device:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif status.st_nlink > 1:
                if status.st_ino in linked:
                    continue
                linked.add(status.st_ino)
            size += status.st_blocks * _BLOCK
            inodes += 1
    return DiskUsage(size, inodes)


def _entries(directory: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
