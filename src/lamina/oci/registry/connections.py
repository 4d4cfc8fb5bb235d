"""Connections: pools of them by server, which all threads share; each asked-for answer counted."""

from __future__ import annotations

import errno
import functools
import socket
import ssl
import threading
import urllib.request
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from lamina import __version__
from lamina.errors import RegistryError
from lamina.oci.registry.hosts import SYSTEM, Tls, is_loopback

if TYPE_CHECKING:
    from lamina.oci.registry.options import Options

_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
_IDLE = 8  # connections kept for later, of each pool


class Origin(NamedTuple):
    """Where a request goes to: what credentials are bound to (RFC 6454)."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: httpx.URL) -> Origin:
        """That of an address; :class:`RegistryError` for one that is not http or https."""
        if url.scheme not in ("http", "https") or not url.host:
            raise RegistryError(f"not an address of a server: {str(url)[:200]!r}")
        return cls(url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))


class Connections:
    """Pools of connections, one for each server and way of trusting it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pools: dict[tuple[Origin, Tls, bool], httpx.Client] = {}
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.requests = 0
        """Requests that were sent, whoever they went to; not those for want of a connection."""
        self.closed = threading.Event()

    def send(
        self,
        method: str,
        url: httpx.URL,
        *,
        headers: Iterable[tuple[str, str]] = (),
        content: bytes | None = None,
        tls: Tls = SYSTEM,
        bulk: bool = False,
        timeout: float | None = None,
    ) -> httpx.Response:
        """Send one request, follow nothing; the answer's body is still to be read, then closed.

        ``bulk``: much is going to be sent or received; this goes by HTTP/1.1, see :meth:`_open`.
        ``timeout`` is in seconds, and instead of the options' for reading.

        Raises:
            httpx.TransportError: no whole answer came.
            RegistryError: certificates that can't be loaded, a proxy that can't be used.
        """
        pool = self._pool(Origin.of(url), tls, bulk)
        request = pool.build_request(
            method, url, headers=[*headers], content=content, extensions={"trace": self._trace},
            timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else self._timeout(timeout),
        )  # fmt: skip
        with self._lock:
            self.requests += 1
        try:
            return pool.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            with self._lock:
                self.requests -= 1
            raise
        except (RuntimeError, OSError, httpx.InvalidURL) as error:
            # What a pool says that was closed meanwhile is no error of httpx's.
            raise httpx.ReadError(str(error)) from error

    def close(self) -> None:
        """Give up all connections; who waits for an answer in another thread is woken."""
        self.closed.set()
        with self._lock:
            sockets, pools = list(self._sockets), list(self._pools.values())
            self._pools.clear()
        for each in sockets:
            _shut_down(each)
        for pool in pools:
            pool.close()

    def _pool(self, origin: Origin, tls: Tls, bulk: bool) -> httpx.Client:
        key = origin, tls if origin.scheme == "https" else SYSTEM, bulk
        with self._lock:
            if self.closed.is_set():
                raise RegistryError("the connections were closed")
            if key not in self._pools:
                self._pools[key] = self._open(*key)
            return self._pools[key]

    def _open(self, origin: Origin, tls: Tls, bulk: bool) -> httpx.Client:
        """A pool for one server.

        Blobs go by HTTP/1.1, one connection each: HTTP/2 in Python spends several times the
        processor's time on a byte, and one connection for all is one thread's work at a time.
        """
        options = self._options
        try:
            return httpx.Client(
                http2=not bulk,
                verify=_context(tls, bulk) if origin.scheme == "https" else False,
                proxy=_proxy(origin),
                trust_env=False,
                timeout=self._timeout(options.read_timeout),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=_IDLE),
                headers={"User-Agent": f"lamina/{__version__}", "Accept-Encoding": "identity"},
            )
        except (ImportError, ValueError) as error:
            raise RegistryError(f"the proxy for {origin.host} can't be used: {error}") from error

    def _timeout(self, seconds: float) -> httpx.Timeout:
        return httpx.Timeout(seconds, connect=min(seconds, self._options.connect_timeout))

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Keep sight of sockets, so that :meth:`close` can end what waits for them."""
        stream = info.get("return_value") if event.endswith(".complete") else None
        if stream is not None and hasattr(stream, "get_extra_info"):
            found = stream.get_extra_info("socket")
            with self._lock:
                self._sockets.add(found)
                late = self.closed.is_set()
            if late:
                _shut_down(found)


def _shut_down(stream: socket.socket) -> None:
    try:
        # Not SSLSocket.shutdown, which forgets the TLS state that another thread is using.
        socket.socket.shutdown(stream, socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already


def _proxy(origin: Origin) -> str | None:
    """The proxy that the environment names for a server (HTTPS_PROXY, NO_PROXY...)."""
    proxies = urllib.request.getproxies_environment()
    name = f"[{origin.host}]" if ":" in origin.host else origin.host
    if is_loopback(name) or urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]
        f"{name}:{origin.port}"
    ):
        return None
    proxy = proxies.get(origin.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


@functools.lru_cache
def _system_context(bulk: bool) -> ssl.SSLContext:
    """Made once: reading the system's authorities takes some 40 ms.

    One for each protocol, since a pool writes into its context what it offers.
    """
    return ssl.create_default_context()


def _context(tls: Tls, bulk: bool) -> ssl.SSLContext:
    if tls == SYSTEM:
        return _system_context(bulk)
    context = ssl.create_default_context()
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        for authority in tls.authorities:
            context.load_verify_locations(cafile=str(authority))
        for certificate, key in tls.clients[:1]:
            context.load_cert_chain(str(certificate), str(key) if key else None)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(map(str, [*tls.authorities, *(c for c, _ in tls.clients)]))
        raise RegistryError(f"certificates can't be loaded ({names}): {error}") from error
    return context


def no_network(error: Exception) -> bool:
    """Whether there is no way to a server, at the bottom of an error: no name, no route."""
    return isinstance(error, httpx.ConnectTimeout) or any(
        isinstance(cause, socket.gaierror)
        or (isinstance(cause, OSError) and cause.errno in _NO_WAY)
        for cause in _causes(error)
    )


def unverified(error: Exception) -> bool:
    """Whether a server's certificate was not taken, at the bottom of an error."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
