"""Numbers for Prometheus: counters, histograms, gauges, in its text format, over HTTP.

The format is a dozen lines (https://prometheus.io/docs/instrumenting/exposition_formats/), so that
no client library is needed for it.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from lamina.errors import LaminaError, printable
from lamina.log import Log

log = Log(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip

_CONNECTIONS = 16
"""That are open at once: each has a thread."""

Labels = tuple[tuple[str, str], ...]


class Metric(Protocol):
    """Something that can be written out."""

    def lines(self) -> Iterator[str]:
        """Its lines in the text format."""


M = TypeVar("M", bound=Metric)


class Registry:
    """All metrics of a server, in the order in which they were made."""

    def __init__(self) -> None:
        self._metrics: list[Metric] = []

    def counter(self, name: str, help: str) -> Counter:
        """A number for each set of labels, that only grows."""
        return self._add(Counter(name, help))

    def histogram(self, name: str, help: str) -> Histogram:
        """How many observations, in seconds, were below which bound."""
        return self._add(Histogram(name, help))

    def gauge(self, name: str, help: str, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Numbers that ``read`` gives when they are asked for."""
        self._add(Gauge(name, help, read))

    def text(self) -> str:
        """All of them as Prometheus reads them."""
        return "".join(f"{line}\n" for metric in self._metrics for line in metric.lines())

    def _add(self, metric: M) -> M:
        self._metrics.append(metric)
        return metric


class Counter:
    """See :meth:`Registry.counter`."""

    def __init__(self, name: str, help: str) -> None:
        self._name, self._help = name, help
        self._mutex = threading.Lock()
        self._values: dict[Labels, float] = {}

    def add(self, amount: float = 1, **labels: str) -> None:
        """Count ``amount`` more."""
        key = tuple(labels.items())
        with self._mutex:
            self._values[key] = self._values.get(key, 0) + amount

    def lines(self) -> Iterator[str]:
        """See :class:`Metric`."""
        yield from _head(self._name, self._help, "counter")
        with self._mutex:
            values = dict(self._values)
        for labels, value in values.items():
            yield _line(self._name, labels, value)


class Histogram:
    """See :meth:`Registry.histogram`."""

    def __init__(self, name: str, help: str) -> None:
        self._name, self._help = name, help
        self._mutex = threading.Lock()
        self._values: dict[Labels, list[float]] = {}  # a count for each bucket, then the sum

    def observe(self, seconds: float, **labels: str) -> None:
        """Count one."""
        key = tuple(labels.items())
        with self._mutex:
            counts = self._values.setdefault(key, [0.0] * (len(_BUCKETS) + 2))
            counts[bisect_left(_BUCKETS, seconds)] += 1
            counts[-1] += seconds

    def lines(self) -> Iterator[str]:
        """See :class:`Metric`."""
        yield from _head(self._name, self._help, "histogram")
        with self._mutex:
            values = {labels: list(counts) for labels, counts in self._values.items()}
        for labels, counts in values.items():
            total = 0.0
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), counts, strict=False):
                total += count
                yield _line(f"{self._name}_bucket", (*labels, ("le", bound)), total)
            yield _line(f"{self._name}_sum", labels, counts[-1])
            yield _line(f"{self._name}_count", labels, total)


class Gauge:
    """See :meth:`Registry.gauge`."""

    def __init__(self, name: str, help: str, read: Callable[[], Mapping[Labels, float]]) -> None:
        self._name, self._help, self._read = name, help, read

    def lines(self) -> Iterator[str]:
        """See :class:`Metric`."""
        yield from _head(self._name, self._help, "gauge")
        for labels, value in self._read().items():
            yield _line(self._name, labels, value)


def _head(name: str, help: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {help}", f"# TYPE {name} {kind}"


def _line(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    shown = f"{value:.0f}" if value == int(value) else repr(value)
    return f"{name}{{{pairs}}} {shown}" if pairs else f"{name} {shown}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@contextmanager
def served(registry: Registry, address: str) -> Iterator[int]:
    """Answer ``GET /metrics`` at ``HOST:PORT`` while the block runs; the port.

    HOST is a name or an address, ``[::1]`` too; without one (``:PORT``) it is every address, and
    port 0 any that is free. More than a few connections are not kept: the oldest goes then, which
    may be one that only waits.

    Raises:
        LaminaError: it is no address, or can't be listened at.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def version_string(self) -> str:
            return "lamina"

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            try:
                body = registry.text().encode()
            except (LaminaError, OSError) as error:
                log.warning("can't tell the numbers: %s", error)
                self.send_error(500)
                return
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

        def __init__(self, family: int, place: tuple[str, int]) -> None:
            self.address_family = family
            self._open: list[object] = []
            self._mutex = threading.Lock()
            super().__init__(place, Handler)

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the DNS for our name
            self.server_name, self.server_port = "", self.server_address[1]

        def process_request(self, request: Any, client_address: Any) -> None:
            with self._mutex:
                self._open.append(request)
                if len(self._open) > _CONNECTIONS:
                    _end(self._open.pop(0))
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            with self._mutex:
                if request in self._open:
                    self._open.remove(request)
            super().shutdown_request(request)

        def handle_error(self, request: Any, client_address: Any) -> None:
            log.debug("a client of the numbers went away: %s", sys.exception())

    try:
        family, place = _resolved(address)
        server = Server(family, place)
    except OSError as error:
        raise LaminaError(
            f"can't serve metrics at {printable(address)}: {error.strerror or error}"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="lamina-metrics", args=(0.1,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _resolved(address: str) -> tuple[int, tuple[str, int]]:
    """The family and the address of HOST:PORT; LaminaError or OSError where it is none."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise LaminaError(
            f"can't serve metrics at {printable(address)}: it takes HOST:PORT, as 127.0.0.1:9323"
        )
    found = socket.getaddrinfo(
        host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, _, _, _, place = found[0]
    return family, (str(place[0]), int(place[1]))


def _end(connection: Any) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the client was faster
