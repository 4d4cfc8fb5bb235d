"""A stream that is kept while it is read: how a tar is written and indexed at the same time."""

from __future__ import annotations

from collections.abc import Callable

from lamina.archive.tar import Readable
from lamina.archive.zeros import PunchedWriter


class Tee:
    """Reads ``stream`` and writes all that it gives to the empty file ``fd``.

    For a TarReader, which reads every byte of what is no plain file, and to the end. Zeros become
    holes, so that a sparse file costs little though its tar has all of it. ``wrote`` is told how
    many bytes there are, each time that there are more.
    """

    def __init__(
        self, stream: Readable, fd: int, wrote: Callable[[int], None] | None = None
    ) -> None:
        self._stream = stream
        self._readinto: Callable[[memoryview], int] = getattr(stream, "readinto", self._copy)
        self._writer = PunchedWriter(fd)
        self._wrote = wrote

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._writer.offset

    def readinto(self, buffer: memoryview, /) -> int:
        """Some bytes; 0 at the end."""
        count = self._readinto(buffer)
        if count:
            self._writer.write(buffer[:count])
            if self._wrote is not None:
                self._wrote(self._writer.offset)
        return count

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        buffer = memoryview(bytearray(size))
        return bytes(buffer[: self.readinto(buffer)])

    def finish(self) -> None:
        """Complete the file, at the stream's end."""
        self._writer.finish()

    def _copy(self, buffer: memoryview) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
