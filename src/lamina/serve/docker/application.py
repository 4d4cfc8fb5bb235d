"""Requests to methods, results to answers. An ASGI application: each request has a thread."""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import BinaryIO, cast

import msgspec

from lamina.errors import InvalidName, LaminaError, OptionUnsupported, printable
from lamina.serve.docker.bodies import (
    STOPS,
    Event,
    Incoming,
    Loop,
    Receive,
    Result,
    Send,
    departure,
    whole,
)
from lamina.serve.docker.graphdriver import APPLY_DIFF, DIFF, METHODS, Answer, GraphDriver
from lamina.serve.docker.messages import BadRequest, Layer, decode
from lamina.serve.docker.watching import Watch

LONGEST_REQUEST = 1 << 20
"""Bytes of a request in JSON."""
_BLOCK = 1 << 18  # bytes of a tar that are sent at once
_THREADS = 1024
"""How many requests are worked on at once. Docker has an ApplyDiff wait for a Diff (commit), so
that it must be more than it may have open: those beyond wait until others are through."""
_JSON = b"application/vnd.docker.plugins.v1.2+json"
_TAR = b"application/x-tar"


class _Refused(LaminaError):
    """A request that no method was called for."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Application:
    """The protocol over HTTP."""

    def __init__(self, plugin: GraphDriver, watch: Watch) -> None:
        self._plugin = plugin
        self._watch = watch
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="request")

    def close(self) -> None:
        """Wait for the threads."""
        self._threads.shutdown()

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3, HTTP)."""
        call = _Call(scope["path"].removeprefix("/"), receive, _Answering(send))
        started = time.monotonic()
        failed: Exception | None = None
        try:
            if scope["method"] != "POST":
                raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "the protocol has POST only")
            if call.method == APPLY_DIFF:
                await self._apply_diff(call, scope["query_string"])
            else:
                await self._with_json(call)
        except ConnectionAbortedError as error:
            failed = error  # nobody is there to hear of it
        except asyncio.CancelledError:
            failed = ConnectionAbortedError(STOPS)  # uvicorn's patience is over
        except Exception as error:
            failed = error
            await _tell(error, call.answering)
        finally:
            took = time.monotonic() - started
            self._watch.done(call.method, call.key, took, call.answering.status, failed)

    async def _with_json(self, call: _Call) -> None:
        body = await whole(call.receive, LONGEST_REQUEST)
        if body is None:
            too_large = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            raise _Refused(too_large, f"a request has {LONGEST_REQUEST} bytes at most")
        call.key = _key_of(body)
        if call.method == DIFF:
            await self._diff(call, decode(body, Layer))
            return
        if call.method not in METHODS:
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no method '{printable(call.method)}'")
        run, kind = METHODS[call.method]
        request = decode(body, kind)
        await call.answering.json(await self._in_thread(lambda: run(self._plugin, request)))

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- tars ---------------------------------------------------------------------------

    async def _apply_diff(self, call: _Call, query: bytes) -> None:
        call.key, parent = _layers_of(query)
        loop = Loop()
        started = time.monotonic()

        def apply() -> Answer:
            with Incoming(call.receive, loop) as tar:
                try:
                    answer = self._plugin.apply_diff(call.key, parent, cast(BinaryIO, tar))
                finally:
                    tar.drain()
                self._watch.unpacked(tar.count, time.monotonic() - started)
                return answer

        try:
            await call.answering.json(await self._in_thread(apply))
        finally:
            loop.stop()

    async def _diff(self, call: _Call, request: Layer) -> None:
        """The first block is made before the answer begins: an error in it has a status yet."""
        loop = Loop()
        gone = asyncio.create_task(departure(call.receive))

        def stream() -> None:
            with closing(self._plugin.diff(request)) as tar:
                block = tar.read(_BLOCK)
                loop.run(call.answering.begin(_TAR))
                while block:
                    if gone.done():
                        raise ConnectionAbortedError("the client went away before the tar's end")
                    loop.run(call.answering.more(block))
                    self._watch.packed(len(block))
                    block = tar.read(_BLOCK)
                loop.run(call.answering.end())

        try:
            await self._in_thread(stream)
        finally:
            loop.stop()
            gone.cancel()


@dataclass(slots=True)
class _Call:
    """One request on its way."""

    method: str
    receive: Receive
    answering: _Answering
    key: str = ""
    """The layer that it is about, for the log."""


async def _tell(error: Exception, answering: _Answering) -> None:
    """Say what went wrong. A client that has part of a tar is told by the connection's end."""
    if answering.status is None:
        expected = isinstance(error, LaminaError | OSError)
        text = str(error) if expected else f"internal error: {error!r}"
        await answering.json({"Err": text}, _status_of(error))


class _Answering:
    """What is sent to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: HTTPStatus | None = None

    async def json(self, answer: Answer, status: HTTPStatus = HTTPStatus.OK) -> None:
        """A whole answer."""
        body = msgspec.json.encode(answer) + b"\n"
        await self.begin(_JSON, status, (b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.body", "body": body})

    async def begin(
        self, kind: bytes, status: HTTPStatus = HTTPStatus.OK, *headers: tuple[bytes, bytes]
    ) -> None:
        """The head of an answer."""
        self.status = status
        headers = ((b"content-type", kind), *headers)
        await self._send(
            {"type": "http.response.start", "status": int(status), "headers": list(headers)}
        )

    async def more(self, block: bytes) -> None:
        """Part of a tar; waits for a slow client."""
        await self._send({"type": "http.response.body", "body": block, "more_body": True})

    async def end(self) -> None:
        """The end of a tar, without which the client takes it for broken off."""
        await self._send({"type": "http.response.body", "body": b""})


def _status_of(error: Exception) -> HTTPStatus:
    if isinstance(error, _Refused):
        return error.status
    if isinstance(error, BadRequest | InvalidName | OptionUnsupported):
        return HTTPStatus.BAD_REQUEST
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _layers_of(query: bytes) -> tuple[str, str]:
    """``id`` and ``parent`` of a query string."""
    found = urllib.parse.parse_qs(query.decode("latin-1"), keep_blank_values=True)
    id, parent = (found.get(name, [""]) for name in ("id", "parent"))
    if len(id) != 1 or len(parent) != 1:
        raise BadRequest("id and parent are to be given once")
    return id[0], parent[0]


def _key_of(body: bytes) -> str:
    """The layer that a request is about, for the log; "" where there is none."""
    try:
        return decode(body, Layer).id
    except BadRequest:
        return ""
