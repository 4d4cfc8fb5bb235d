"""The stream under a reader: one buffer, filled from any readable or straight from a file."""

from __future__ import annotations

import io
import os
from mmap import mmap
from stat import S_ISREG
from typing import TYPE_CHECKING, NoReturn, Protocol, Self

from lamina.errors import InvalidArchive
from lamina.kernel.memory import page_aligned

if TYPE_CHECKING:
    from lamina.archive.tar.reader import Observer

BUFFER = 1 << 20
_AFTER_SEEK = 64 << 10


class Readable(Protocol):
    """Anything to read bytes from. ``readinto``, where there, saves a copy."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""


class Source:
    """``buffer[start:end]`` is what was read and not yet used; what follows is read on demand.

    A regular file is read by position, so that what is skipped need not be read at all.
    """

    def __init__(self, stream: Readable, observer: Observer | None) -> None:
        self.buffer = page_aligned(BUFFER)
        self.view = memoryview(self.buffer)
        self.start = 0
        self.end = 0
        self.base = 0  # where in the stream the buffer begins
        self._seen = 0  # what is before this in the buffer, the observer has had
        self._observer = observer
        self._stream = stream
        self._readinto = getattr(stream, "readinto", None)
        self._file = _RegularFile.under(stream)
        self._ahead = BUFFER

    @property
    def offset(self) -> int:
        """Bytes of the stream used so far."""
        return self.base + self.start

    def fill(self, count: int) -> bool:
        """Have ``count`` bytes (at most BUFFER) to use; False when the stream ends before."""
        have = self.end - self.start
        if have >= count:
            return True
        self.report()
        self.view[:have] = self.view[self.start : self.end]
        self.base += self.start
        self.start = self._seen = 0
        self.end = have
        while self.end < count:
            got = self._read()
            if not got:
                return False
            self.end += got
        return True

    @classmethod
    def of(cls, stream: Readable | mmap, observer: Observer | None) -> Source:
        """The source that fits ``stream``."""
        return _Mapped(stream) if isinstance(stream, mmap) else cls(stream, observer)

    def _read(self) -> int:
        """Read behind the end of the buffer's content; how many bytes."""
        space = self.view[self.end :]
        if self._file is not None:
            space = space[: self._ahead]
            self._ahead = BUFFER
            return self._file.read(space, self.base + self.end)
        if self._readinto is not None:
            got = self._readinto(space)
        else:
            data = self._stream.read(len(space))
            got = data if data is None else len(data)
            if got:
                space[:got] = data
        if got is None:
            raise BlockingIOError("the archive's stream is in non-blocking mode")
        return int(got)

    def report(self) -> None:
        """Show the observer what was used since it last saw the stream, as raw."""
        if self._observer is not None and self._seen < self.start:
            self._observer.raw(self.view[self._seen : self.start])
            self._seen = self.start

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, copied; InvalidArchive when the stream ends before."""
        start = self.start
        if count <= self.end - start:
            self.start = start + count
            return bytes(self.view[start : start + count])
        parts = []
        while count:
            part = self.piece(count)
            parts.append(bytes(part))
            count -= len(part)
        return b"".join(parts)

    def piece(self, count: int) -> memoryview:
        """Use some of the next ``count`` bytes, as many as are at hand but one at least."""
        if self.start == self.end and not self.fill(1):
            truncated()
        part = self.view[self.start : min(self.end, self.start + count)]
        self.start += len(part)
        return part

    def payload(self, count: int) -> memoryview:
        """As ``piece``, shown to the observer as payload."""
        part = self.piece(count)
        if self._observer is not None:
            self._seen = self.start
            self._observer.payload(part)
        return part

    def holds(self, count: int) -> bool:
        """False when the stream is known to have fewer than ``count`` bytes more."""
        return (
            self._file is None
            or count <= self.end - self.start
            or self.offset + count <= self._file.size
        )

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes; InvalidArchive when the stream ends before."""
        if count <= self.end - self.start:
            self.start += count
        elif self._file is not None and self._observer is None:
            if not self.holds(count):
                truncated()
            self.base += self.start + count
            self.start = self.end = self._seen = 0
            # More skipping is likely: don't read far ahead.
            self._ahead = _AFTER_SEEK
        else:
            while count:
                count -= len(self.piece(count))

    def skip_padding(self, count: int) -> None:
        """Pass over ``count`` bytes, or none if the stream ends just here.

        ``umoci insert`` leaves them out behind the last entry, and Go's archive/tar does not mind.
        """
        if count and self.fill(1):
            self.skip(count)

    def write_payload(self, fd: int, count: int) -> None:
        """Write the next ``count`` bytes to ``fd``; InvalidArchive when the stream ends before.

        By way of the buffer even from a file: copy_file_range(2) takes longer, as payload does
        not lie on the boundaries of file system blocks, without which nothing can be shared.
        """
        while count:
            part = self.payload(count)
            count -= len(part)
            while part:
                part = part[os.write(fd, part) :]

    def drain(self) -> None:
        """Pass over all the rest, and leave a file's position where it ends."""
        if self._file is None or self._observer is not None:
            self.start = self.end
            while self.fill(1):
                self.start = self.end
            self.report()
        if self._file is not None:
            self._file.finish()


class _Mapped(Source):
    """A whole file in memory: nothing is read, and what is skipped is not even looked at."""

    def __init__(self, data: mmap) -> None:
        self.buffer = data
        self.view = memoryview(data)
        self.start = 0
        self.end = len(data)
        self.base = self._seen = 0
        self._observer = None
        self._file = None

    def fill(self, count: int) -> bool:
        """Whether there are ``count`` bytes more."""
        return self.end - self.start >= count

    def holds(self, count: int) -> bool:
        """The same."""
        return self.end - self.start >= count

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes; InvalidArchive when the file ends before."""
        if count > self.end - self.start:
            truncated()
        self.start += count

    def drain(self) -> None:
        """Pass over all the rest."""
        self.start = self.end


class _RegularFile:
    """The open file that a stream reads, used by position."""

    def __init__(self, stream: io.FileIO | io.BufferedReader | io.BufferedRandom) -> None:
        self._stream = stream
        self.fd = stream.fileno()
        self.origin = stream.tell()
        self.size = os.fstat(self.fd).st_size - self.origin

    @classmethod
    def under(cls, stream: object) -> Self | None:
        """The file under ``stream``; None for all that is not plainly an open file with a size.

        Other classes may have a file's number and do something to its bytes, as GzipFile does.
        """
        if type(stream) is io.BufferedReader or type(stream) is io.BufferedRandom:
            if type(stream.raw) is not io.FileIO:
                return None
            stream.flush()
        elif type(stream) is not io.FileIO:
            return None
        if not S_ISREG(os.fstat(stream.fileno()).st_mode):
            return None
        file = cls(stream)
        # Files of procfs say that they are empty.
        return file if file.size > 0 else None

    def read(self, space: memoryview, offset: int) -> int:
        """Fill ``space`` from ``offset`` on; how many bytes."""
        return os.preadv(self.fd, [space], self.origin + offset)

    def finish(self) -> None:
        """Leave the stream at its end, as if it had been read."""
        self._stream.seek(self.origin + self.size)


def truncated() -> NoReturn:
    """Raise InvalidArchive for a stream that ends too early."""
    raise InvalidArchive("truncated")
