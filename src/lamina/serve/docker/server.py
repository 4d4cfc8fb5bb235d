"""The HTTP server, on a socket that somebody listens on already."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lamina.drivers.homes import Homes
from lamina.serve.docker.application import Application
from lamina.serve.docker.graphdriver import GraphDriver
from lamina.serve.docker.watching import Watch, measure
from lamina.serve.metrics import Registry

_KEEP_ALIVE = 24 * 3600  # seconds: Docker's connections may rest that long
_LONGEST_HEAD = 64 << 10
"""Bytes of a request's first line and headers."""
_BROKEN_OFF = "ASGI callable returned without completing response."


class Server(uvicorn.Server):
    """Serves the graph driver plugin until SIGTERM, SIGINT or :meth:`stop`.

    Args:
        homes: where the layers are.
        names: by which storage options may call the plugin.
        ready: called when requests are accepted.
        metrics: where numbers about calls and layers are kept.
        patience: seconds that requests get to end when the server stops; then they are given up.
    """

    def __init__(
        self,
        homes: Homes,
        names: frozenset[str],
        *,
        ready: Callable[[], None] = lambda: None,
        metrics: Registry | None = None,
        patience: int = 30,
    ) -> None:
        self._ready = ready
        metrics = metrics or Registry()
        measure(homes, metrics)
        self._application = Application(GraphDriver(homes, names), Watch(metrics))
        super().__init__(
            uvicorn.Config(
                self._application,
                http=_Protocol,
                loop="asyncio",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=patience,
            )
        )
        _log_with_ours()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    def serve_on(self, listening: list[socket.socket]) -> None:
        """Serve, and return when all requests are through."""
        try:
            self.run(sockets=listening)
        finally:
            self._application.close()

    def stop(self) -> None:
        """Accept no more; from any thread."""
        self.should_exit = True


class _Protocol(HttpToolsProtocol):
    """Bounds the head of a request, which the parser would take of any length."""

    _head = 0
    _in_body = False

    def data_received(self, data: bytes) -> None:
        """See :meth:`asyncio.Protocol.data_received`."""
        self._head += 0 if self._in_body else len(data)
        super().data_received(data)
        if not self._in_body and self._head > _LONGEST_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head, self._in_body = 0, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head ends."""
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It ends."""
        self._head, self._in_body = 0, False
        super().on_message_complete()


def _log_with_ours() -> None:
    """Let uvicorn's messages go where ours go; a broken-off answer has its message already."""
    logger = logging.getLogger("uvicorn.error")
    logger.parent = logging.getLogger("lamina")
    logger.setLevel(logging.WARNING)
    if not logger.filters:
        logger.addFilter(lambda record: record.getMessage() != _BROKEN_OFF)
