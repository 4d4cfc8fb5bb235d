"""What a layout's files are read from: a directory, or the members of an archive."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from lamina.errors import InvalidImage, printable
from lamina.kernel.path import open_in_root

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    class _Raw(io.RawIOBase, BinaryIO):
        """What io's own files are to a type checker."""
else:
    _Raw = io.RawIOBase


class OpenFile(NamedTuple):
    """An open file that can seek, and the bytes it has."""

    stream: BinaryIO
    size: int


class Files(Protocol):
    """Regular files by their path below one top; nothing leads out of it."""

    @property
    def description(self) -> str:
        """Where they are, for messages."""

    def open(self, path: str) -> OpenFile:
        """Open a file for reading.

        Raises:
            FileNotFoundError: it is not there.
            InvalidImage: it is no regular file, or a link that leads nowhere good.
        """

    def close(self) -> None:
        """Give up the descriptor behind them."""


def read_file(files: Files, path: str, limit: int) -> bytes:
    """All of a small file.

    Raises FileNotFoundError, or :class:`InvalidImage` if it has more than ``limit`` bytes.
    """
    stream, size = files.open(path)
    with stream:
        if size > limit:
            raise InvalidImage(
                f"{path} of {printable(files.description)} has {size} bytes (at most {limit})"
            )
        return stream.read()


class Folder:
    """The files of a directory, by its descriptor (:class:`Files`).

    Symbolic links are followed as if the directory were the root, so that none leads out of it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def description(self) -> str:
        """The directory's path."""
        return self.path

    def open(self, path: str) -> OpenFile:
        """See :meth:`Files.open`."""
        # O_NONBLOCK: not to wait at a FIFO for somebody to write.
        try:
            fd = open_in_root(self.fd, os.fsencode(path), os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
                raise InvalidImage(f"{path} of {printable(self.path)} is no file") from error
            raise
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise InvalidImage(f"{path} of {printable(self.path)} is no regular file")
            return OpenFile(io.FileIO(fd, "rb"), found.st_size)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close the directory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Region(_Raw):
    """``size`` bytes of an open file from ``start`` on, read by position.

    Any number of them read one descriptor at once. It stays open when they are closed.
    """

    def __init__(self, fd: int, start: int, size: int) -> None:
        super().__init__()
        self._fd = fd
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes from the region's start."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As of any file; never before the start."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Some bytes, none at the end of the region (or of the file, if that comes first)."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._size - self._at)]
        count = os.preadv(self._fd, [view], self._start + self._at) if view else 0
        self._at += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes; all that are left for -1 or None."""
        if size is None or size < 0:
            return self.readall()
        count = max(0, min(size, self._size - self._at))
        data = os.pread(self._fd, count, self._start + self._at) if count else b""
        self._at += len(data)
        return data
