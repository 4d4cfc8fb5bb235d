"""Tars between the threads that pack and unpack and the event loop that has the sockets.

A thread has a few blocks on its way at most: a slow reader or writer holds up the other side.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Result = TypeVar("Result")
Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

STOPS = "the server stops, or gave up the request"
"""Why a request ends that could go on."""


class Loop:
    """An event loop, as a thread that works for one request sees it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: concurrent.futures.Future[Any] | None = None
        self._stopped = threading.Event()

    def run(self, step: Coroutine[Any, Any, Result]) -> Result:
        """Let the loop do something, and wait for it. In the thread.

        Raises:
            ConnectionAbortedError: the request was given up meanwhile.
        """
        if self._stopped.is_set():
            step.close()
            raise ConnectionAbortedError(STOPS)
        self._waiting = waiting = asyncio.run_coroutine_threadsafe(step, self._loop)
        if self._stopped.is_set():  # meanwhile
            waiting.cancel()
        try:
            return waiting.result()
        except concurrent.futures.CancelledError:
            raise ConnectionAbortedError(STOPS) from None

    def stop(self) -> None:
        """Give the request up: whoever waits, or will, gets an error. In the loop."""
        self._stopped.set()
        if self._waiting is not None:
            self._waiting.cancel()


class Incoming(io.RawIOBase):
    """The body of a request, as a file.

    Reading raises ConnectionAbortedError when the client goes away before the end: what came until
    then may look like a whole tar.
    """

    def __init__(self, receive: Receive, loop: Loop) -> None:
        self._receive, self._loop = receive, loop
        self._rest = memoryview(b"")
        self._more = True
        self.count = 0
        """Bytes that came."""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read some bytes; 0 at the end."""
        while not self._rest and self._more:
            self._next()
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def drain(self) -> None:
        """Read on to the end: a client that is still sending would not hear the answer."""
        self._rest = memoryview(b"")
        while self._more:
            self._next()
            self._rest = memoryview(b"")

    def _next(self) -> None:
        event = self._loop.run(_wait_for(self._receive))
        if event["type"] != "http.request":
            raise ConnectionAbortedError("the client went away before the end of the tar")
        self._rest = memoryview(event.get("body", b""))
        self.count += len(self._rest)
        self._more = event.get("more_body", False)


async def _wait_for(receive: Receive) -> Event:
    return await receive()


async def whole(receive: Receive, limit: int) -> bytes | None:
    """The body of a request, which has to be short; None when it is longer than ``limit`` bytes.

    Raises:
        ConnectionAbortedError: the client went away.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] != "http.request":
            raise ConnectionAbortedError("the client went away in its request")
        size += len(event.get("body", b""))
        if size <= limit:
            parts.append(event.get("body", b""))
        if not event.get("more_body", False):
            return b"".join(parts) if size <= limit else None


async def departure(receive: Receive) -> None:
    """Return when the client, all of whose request is read, is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
