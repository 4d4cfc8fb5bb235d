"""A stream that is kept while it is read: how a tar is written and indexed at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable

from lamina.archive.tar import Readable


class Tee:
    """Reads ``stream`` and writes all that it gives to ``fd``, in the blocks in which it comes.

    For a TarReader, which reads every byte of what is no plain file, and to the end. ``also`` gets
    each block too, say to hash it.
    """

    def __init__(
        self, stream: Readable, fd: int, also: Callable[[bytes], None] | None = None
    ) -> None:
        self.size = 0
        """Bytes so far."""
        self._stream = stream
        self._fd = fd
        self._also = also

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        data = self._stream.read(size)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        if data and self._also is not None:
            self._also(data)
        self.size += len(data)
        return data
