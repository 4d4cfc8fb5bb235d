"""Requests to methods, results to answers. An ASGI application: each request has a thread."""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from typing import BinaryIO, cast

import msgspec

from lamina.errors import InvalidName, LaminaError, OptionUnsupported
from lamina.serve.docker.bodies import (
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

log = logging.getLogger(__name__)

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

    def __init__(self, plugin: GraphDriver) -> None:
        self._plugin = plugin
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="request")

    def close(self) -> None:
        """Wait for the threads."""
        self._threads.shutdown()

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3, HTTP)."""
        method = scope["path"].removeprefix("/")
        started, key = time.monotonic(), ""
        answering = _Answering(send)
        try:
            if scope["method"] != "POST":
                raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "the protocol has POST only")
            if method == APPLY_DIFF:
                key, parent = _layers_of(scope["query_string"])
                await self._apply_diff(key, parent, receive, answering)
                return
            body = await whole(receive, LONGEST_REQUEST)
            if body is None:
                too_large = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                raise _Refused(too_large, f"a request has {LONGEST_REQUEST} bytes at most")
            key = _key_of(body)
            if method == DIFF:
                await self._diff(decode(body, Layer), receive, answering)
            elif method in METHODS:
                call, kind = METHODS[method]
                request = decode(body, kind)
                await answering.json(await self._in_thread(lambda: call(self._plugin, request)))
            else:
                raise _Refused(HTTPStatus.NOT_FOUND, f"there is no method '{method}'")
        except ConnectionAbortedError as error:
            log.warning("%s", error, extra={"fields": {"method": method, "key": key}})
        except Exception as error:
            await self._fail(error, method, key, answering)
        finally:
            took = time.monotonic() - started
            fields = {"method": method, "key": key, "status": answering.status, "seconds": took}
            log.debug("call", extra={"fields": fields})

    async def _fail(self, error: Exception, method: str, key: str, answer: _Answering) -> None:
        """Say what went wrong; to a client that has part of a tar, by ending the connection."""
        expected = isinstance(error, LaminaError | OSError)
        fields = {"method": method, "key": key, "error": str(error)}
        log.log(
            logging.WARNING if expected else logging.ERROR,
            "call failed", exc_info=not expected, extra={"fields": fields},
        )  # fmt: skip
        if answer.status is None:
            text = str(error) if expected else f"internal error: {error!r}"
            await answer.json({"Err": text}, _status_of(error))

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- tars ---------------------------------------------------------------------------

    async def _apply_diff(
        self, id: str, parent: str, receive: Receive, answering: _Answering
    ) -> None:
        loop = Loop()

        def apply() -> Answer:
            with Incoming(receive, loop) as tar:
                try:
                    return self._plugin.apply_diff(id, parent, cast(BinaryIO, tar))
                finally:
                    tar.drain()

        try:
            await answering.json(await self._in_thread(apply))
        finally:
            loop.stop()

    async def _diff(self, request: Layer, receive: Receive, answering: _Answering) -> None:
        """The first block is made before the answer begins: an error in it has a status yet."""
        loop = Loop()
        gone = asyncio.create_task(departure(receive))

        def stream() -> None:
            with closing(self._plugin.diff(request)) as tar:
                block = tar.read(_BLOCK)
                loop.run(answering.begin(_TAR))
                while block:
                    if gone.done():
                        raise ConnectionAbortedError("the client went away before the tar's end")
                    loop.run(answering.more(block))
                    block = tar.read(_BLOCK)
                loop.run(answering.end())

        try:
            await self._in_thread(stream)
        finally:
            loop.stop()
            gone.cancel()


class _Answering:
    """What is sent to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def json(self, answer: Answer, status: HTTPStatus = HTTPStatus.OK) -> None:
        """A whole answer."""
        body = msgspec.json.encode(answer) + b"\n"
        await self.begin(_JSON, status, (b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.body", "body": body})

    async def begin(
        self, kind: bytes, status: HTTPStatus = HTTPStatus.OK, *headers: tuple[bytes, bytes]
    ) -> None:
        """The head of an answer."""
        self.status = int(status)
        headers = ((b"content-type", kind), *headers)
        await self._send(
            {"type": "http.response.start", "status": self.status, "headers": list(headers)}
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
