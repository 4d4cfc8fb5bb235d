"""Where compressed bytes come from: a path, a descriptor or a file object, read in a thread."""

from __future__ import annotations

import io
import os
import select
import stat
from typing import BinaryIO, TypeAlias

SourceLike: TypeAlias = str | bytes | os.PathLike[str] | int | BinaryIO
"""A path, an open descriptor, or an object with ``read``."""


class Source:
    """A byte source whose pending read another thread can call off.

    A path is opened and closed by the source; descriptors and objects stay the caller's, who
    leaves them alone meanwhile (where they stand afterwards is not defined). An object that is
    a file in all but buffering is read through its descriptor, so that a read from a pipe,
    socket or terminal waits in poll(2), which :meth:`stop` ends. (A thread left behind in
    ``BufferedReader.read`` would hold a lock that the interpreter wants at its exit.)
    """

    def __init__(self, source: SourceLike) -> None:
        self._object: BinaryIO | None = None
        self._fd = -1
        self._owned = False
        self._head = b""
        self._stopped = False
        self._wake = -1
        if isinstance(source, int):
            self._fd = source
        elif isinstance(source, str | bytes | os.PathLike):
            self._fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            self._owned = True
        else:
            self._take(source)
        self.regular = self._fd >= 0 and stat.S_ISREG(os.fstat(self._fd).st_mode)
        if self._fd >= 0 and not self.regular:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def _take(self, source: BinaryIO) -> None:
        """Use the object's descriptor if nothing but a read buffer stands before it."""
        if isinstance(source, io.FileIO):
            self._fd = source.fileno()
        elif isinstance(source, io.BufferedReader) and isinstance(source.raw, io.FileIO):
            self._fd = source.fileno()
            if source.seekable():
                os.lseek(self._fd, source.tell(), os.SEEK_SET)
            else:
                # peek fills an empty buffer by one read and so may block, here in the caller's
                # thread; reading just what it shows leaves the buffer empty.
                self._head = source.read(len(source.peek()))
        else:
            self._object = source

    def fileno(self) -> int:
        """The descriptor, or -1. A regular file's offset is that of the next byte to read."""
        return self._fd

    def peek(self, size: int) -> bytes:
        """The first ``size`` bytes or more, fewer at the end, which stay to be read."""
        if self.regular:
            return os.pread(self._fd, size, os.lseek(self._fd, 0, os.SEEK_CUR))
        while len(self._head) < size and (data := self._read_some(size - len(self._head))):
            self._head += data
        return self._head

    def read(self, size: int) -> bytes:
        """``size`` bytes; fewer at the end, or when stopped."""
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._read_some(size)
        if len(data) == size or not data:
            return data
        parts = [data]
        missing = size - len(data)
        while missing and (data := self._read_some(missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def _read_some(self, size: int) -> bytes:
        if self._stopped:
            return b""
        if self._object is not None:
            return self._object.read(size)
        if self._wake >= 0 and not self._wait():
            return b""
        return os.read(self._fd, size)

    def _wait(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.poll()
        return not self._stopped

    def stop(self) -> None:
        """End the read under way in another thread, and let all later ones return nothing."""
        self._stopped = True
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Release what this source opened. No read may be under way."""
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
        if self._owned:
            os.close(self._fd)
            self._owned = False
        self._fd = -1
