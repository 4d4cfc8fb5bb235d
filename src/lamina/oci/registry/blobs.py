"""Reading a blob that may be cut off: the rest is asked for by range, as often as need be."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import httpx

from lamina.errors import BlobNotFound, RegistryError
from lamina.oci.registry.client import Ask, Client
from lamina.oci.registry.retry import Attempts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamina.types import Digest

_PROGRESS = 1 << 20  # bytes after which a cut counts as the first
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class BlobReader(io.RawIOBase):
    """The bytes of a blob from an offset on, not verified.

    A connection that breaks, stalls or ends early is made again from where it was, a bounded number
    of times without progress; a server that knows no ranges is read from the start, and what was
    had is skipped. More bytes than the size are given on: whoever verifies finds out.
    """

    def __init__(
        self, client: Client, ask: Ask, digest: Digest, size: int, offset: int = 0
    ) -> None:
        """``ask`` is the request for the whole; the first one is made at once.

        Raises:
            BlobNotFound: the registry has no such blob.
            RegistryError: it does not give it.
        """
        super().__init__()
        self._client = client
        self._ask = ask
        self._digest = digest
        self._size = size
        self._position = self._cut_at = offset
        self._attempts = Attempts(client.options.retries)
        self._rest = memoryview(b"")
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        if offset < size or size == 0:
            self._connect()

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes, all that is left for -1 or None; none at the end.

        Raises :class:`RegistryError` when the connection breaks for good.
        """
        if size is None or size < 0:
            return self.readall()
        if not self._rest:
            self._rest = memoryview(self._next() if size else b"")
        data = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As :meth:`read`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Give the connection back, or up where there is more to come."""
        if not self.closed:
            super().close()
            if self._response is not None:
                self._response.close()

    def _next(self) -> bytes:
        """The next bytes that came in, connecting again where that is needed."""
        while True:
            try:
                chunk = next(self._chunks, b"")
            except (httpx.TransportError, httpx.StreamError, OSError, RuntimeError) as error:
                self._again(error)
                continue
            if chunk or self._position >= self._size:
                self._position += len(chunk)
                return chunk
            self._again(None)

    def _again(self, error: Exception | None) -> None:
        if self._position - self._cut_at >= _PROGRESS:
            self._attempts = Attempts(self._client.options.retries)
        self._cut_at = self._position
        self._client.pause(0)
        wait = self._attempts.next()
        if wait is None:
            why = "stalled" if isinstance(error, httpx.TimeoutException) else "cut off"
            raise RegistryError(
                f"{self._client.registry}: {self._ask.what}: {why} at byte {self._position} "
                f"of {self._size}, again and again"
            ) from error
        self._client.pause(wait)
        self._connect()

    def _connect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        ranged = (("Range", f"bytes={self._position}-"),) if self._position else ()
        ask = Ask(
            method="GET", path=self._ask.path, what=self._ask.what, scopes=self._ask.scopes,
            repository=self._ask.repository, accept=(200, 206, 404) if ranged else (200, 404),
            headers=(*self._ask.headers, *ranged), bulk=True,
        )  # fmt: skip
        response = self._client.ask(ask)
        if response.status_code == 404:
            response.close()
            raise BlobNotFound(self._digest, f"{self._client.registry}: {self._ask.what}")
        self._response = response
        self._chunks = response.iter_raw()
        self._align(response)

    def _align(self, response: httpx.Response) -> None:
        """Come to the position in an answer that may begin elsewhere."""
        start = 0
        if response.status_code == 206:
            match = _RANGE.fullmatch(response.headers.get("content-range", ""))
            start = int(match[1]) if match else -1
            if start < 0 or start > self._position:
                response.close()
                raise RegistryError(
                    f"{self._client.registry}: {self._ask.what}: asked for bytes from "
                    f"{self._position} on, got {response.headers.get('content-range')!r}"
                )
        if start < self._position:
            self._chunks = _skipping(self._chunks, self._position - start)


def _skipping(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    for chunk in chunks:
        if len(chunk) > count:
            yield chunk[count:] if count else chunk
        count -= min(count, len(chunk))
