"""Reading small files below one directory that may hold anything."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from lamina.kernel.path import open_in_root

_LIMIT = 16 << 20
"""Bytes of a file that is read whole; the largest, repositories.json, has some hundred a name."""


class Files:
    """The files below ``root_fd``, which stays the caller's. No name leads out of it."""

    def __init__(self, root_fd: int) -> None:
        self.fd = root_fd

    def open(self, path: str) -> BinaryIO:
        """A regular file; OSError for anything else (EINVAL: something that is none)."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = open_in_root(self.fd, os.fsencode(path), flags)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            return os.fdopen(fd, "rb")
        except BaseException:
            os.close(fd)
            raise

    def open_directory(self, path: str) -> int:
        """A descriptor of a directory, and no link to one, to resolve names below it. OSError."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return open_in_root(self.fd, os.fsencode(path), flags)

    def read(self, path: str) -> bytes:
        """All of a file; OSError (EFBIG) if that is more than Docker ever writes."""
        with self.open(path) as file:
            data = file.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise OSError(errno.EFBIG, "the file is too large to be Docker's", path)
        return data

    def text(self, path: str) -> str:
        """A file of one word, such as an id; ValueError if it is not ASCII."""
        return self.read(path).decode("ascii").strip()

    def names(self, path: str) -> Iterator[str]:
        """What a directory holds, sorted; nothing if there is no directory."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = open_in_root(self.fd, os.fsencode(path), flags)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            names = sorted(os.listdir(fd))
        finally:
            os.close(fd)
        yield from names

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory, and no link to one."""
        try:
            os.close(self.open_directory(path))
        except OSError:
            return False
        return True
