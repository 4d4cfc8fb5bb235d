"""A readable file made of the pieces that a generator yields."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator


def open_chunks(
    chunks: Iterator[bytes | memoryview], on_close: Callable[[], None] | None = None
) -> io.BufferedReader:
    """``chunks`` one after the other; nothing is made before it is asked for.

    Args:
        chunks: the pieces; each need stay valid only until the next is taken.
        on_close: called once, when the stream is closed, after the generator was closed.
    """
    return io.BufferedReader(_Chunks(chunks, on_close))


class _Chunks(io.RawIOBase):
    def __init__(
        self,
        chunks: Iterator[bytes | memoryview],
        on_close: Callable[[], None] | None,
    ) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._on_close = on_close

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            piece = next(self._chunks, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        self._rest = memoryview(b"")
        try:
            if isinstance(self._chunks, Generator):
                self._chunks.close()
        finally:
            if self._on_close is not None:
                self._on_close()
