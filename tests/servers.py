"""Servers on loopback that go wrong on purpose, and one that gives tokens: real sockets, no mocks.

A :class:`Faulty` stands before a real registry and passes requests on, except for those that a
fault was set for. A :class:`Tokens` gives tokens that a :class:`Faulty` with ``tokens`` wants.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came in."""

    method: str
    path: str
    headers: Message

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def authorization(self) -> str | None:
        """The header of that name."""
        return self.headers.get("Authorization")


Action = Callable[["Handler"], None]


@dataclass(slots=True)
class Fault:
    """What happens instead to the requests that match, a number of times."""

    pattern: str
    action: Action
    times: int


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        """Begin a connection; ``more`` are headers of its next answers."""
        super().setup()
        self.more: dict[str, str] = {}

    def end_headers(self) -> None:
        """With those of ``more``."""
        for name, value in self.more.items():
            self.send_header(name, value)
        super().end_headers()

    def handle(self) -> None:
        """Nothing for who wants TLS: this is a server that has none."""
        self.server.connections.add(self.connection)
        self.server.accepted += 1
        try:
            if self.server.tls or self.connection.recv(1, socket.MSG_PEEK) != b"\x16":
                super().handle()
        except OSError:
            pass  # the client went
        finally:
            self.server.connections.discard(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Not to the terminal."""

    def _do(self) -> None:
        self.server.answer(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _do  # noqa: N815

    def do_CONNECT(self) -> None:
        """As a proxy: carry bytes to and from the server's upstream, whatever was asked for."""
        server = self.server
        assert isinstance(server, Faulty)
        server.note(self)
        host, _, port = server.upstream.rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            self.send_response_only(200)
            self.end_headers()
            ends = {self.connection: upstream, upstream: self.connection}
            while not server.stopping.is_set():
                for end in select.select([*ends], [], [], 0.1)[0]:
                    data = end.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    ends[end].sendall(data)

    def body(self, limit: int | None = None) -> bytes:
        """The request's body, or its first bytes."""
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if limit is None else min(limit, length))

    def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """A whole answer."""
        self.body()
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not headers or "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self) -> None:
        """End the connection here."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """A server that ends with all its threads, whoever is still connected."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tls = tls
        self.connections: set[socket.socket] = set()
        self.accepted = 0
        """Connections so far."""
        self.requests: list[Request] = []
        self.stopping = threading.Event()

    def get_request(self) -> tuple[socket.socket, Any]:
        """With TLS the handshake is the handler's."""
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    @property
    def host(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.server_address[1]}"

    def answer(self, handler: Handler) -> None:
        """Answer one request."""
        raise NotImplementedError

    def note(self, handler: Handler) -> Request:
        """Keep a request for the test to look at."""
        request = Request(handler.command, handler.path, handler.headers)
        self.requests.append(request)
        return request

    def asked(self, pattern: str = "") -> list[Request]:
        """The requests so far that match."""
        return [request for request in self.requests if re.search(pattern, str(request))]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve, in a thread."""
        thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            self.shutdown()
            for each in list(self.connections):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            self.server_close()
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what tests want."""


class Faulty(Server):
    """A proxy before ``upstream`` (HOST:PORT, plain); with ``tokens`` it wants theirs."""

    def __init__(
        self, upstream: str, tokens: Tokens | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(tls)
        self.upstream = upstream
        self.tokens = tokens
        self.faults: list[Fault] = []
        self.moved = urlsplit("")
        """Where the upload that :func:`relay` cut short goes on."""

    def fault(self, pattern: str, action: Action, times: int = 1) -> None:
        """Have ``action`` done for the next ``times`` requests whose ``METHOD PATH`` matches."""
        self.faults.append(Fault(pattern, action, times))

    def answer(self, handler: Handler) -> None:
        """Do as a fault says, else pass it on."""
        request = self.note(handler)
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, str(request)):
                fault.times -= 1
                fault.action(handler)
                return
        if self.tokens is not None and not self.tokens.allows(request):
            handler.reply(401, {"WWW-Authenticate": self.tokens.challenge(request)})
            return
        relay(handler)


def relay(
    handler: Handler,
    *,
    change: Callable[[bytes], bytes] = bytes,
    cut_after: int | None = None,
    take: int | None = None,
    short: bool = False,
    without: tuple[str, ...] = (),
) -> None:
    """Pass a request on, and the answer back.

    ``change`` the answer's body; end the connection after ``cut_after`` bytes of it; give the
    registry only ``take`` bytes of the request's body, and end both connections then, with
    ``short`` so that it takes them for all; leave out headers of the request and the answer by
    their lower-case names.
    """
    server = handler.server
    assert isinstance(server, Faulty)
    upstream = http.client.HTTPConnection(server.upstream, timeout=20)
    try:
        body = handler.body(take)
        upstream.putrequest(
            handler.command, handler.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in handler.headers.items():
            if name.lower() not in (*without, "connection", "authorization"):
                short_length = short and name.lower() == "content-length"
                upstream.putheader(name, str(take) if short_length else value)
        upstream.endheaders()
        upstream.send(body)
        if take is not None and short:
            server.moved = urlsplit(upstream.getresponse().headers["Location"])
            handler.cut()
            return
        if take is not None:
            time.sleep(0.1)  # the registry is to get it before the end
            handler.cut()
            return
        answer = upstream.getresponse()
        data = change(answer.read())
        handler.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in (*without, "connection"):
                handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data[:cut_after])
        if cut_after is not None:
            handler.wfile.flush()
            handler.cut()
    finally:
        upstream.close()


def replying(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Action:
    """An action: answer so."""
    return lambda handler: handler.reply(status, headers, body)


def stall(handler: Handler) -> None:
    """An action: say nothing until the server ends."""
    handler.server.stopping.wait(60)
    handler.close_connection = True


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is good for."""

    scopes: set[str]
    expires: float


class Tokens(Server):
    """A token server: users with passwords, and refresh tokens; all else is anonymous.

    Anonymous tokens are good for ``pull`` of repositories in ``public/`` alone.
    """

    SERVICE: ClassVar[str] = "registry of the tests"

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[str, str] = {}
        self.refresh: set[str] = set()
        self.grants: dict[str, Grant] = {}
        self.life = 300.0
        self.post_only = False
        self.sign: Callable[[set[str]], str] = lambda scopes: secrets.token_urlsafe()
        self.fault: list[Action] = []
        self.forms: list[dict[str, list[str]]] = []

    def challenge(self, request: Request) -> str:
        """What a registry answers to a request without a token that is good for it."""
        scope = _scope(request)
        wanted = f',scope="{scope}"' if scope else ""
        return f'Bearer realm="http://{self.host}/token",service="{self.SERVICE}"{wanted}'

    def allows(self, request: Request) -> bool:
        """Whether a request has a token that is good for it now."""
        token = (request.authorization or "").removeprefix("Bearer ")
        grant = self.grants.get(token)
        scope = _scope(request)
        return bool(
            grant
            and time.monotonic() < grant.expires
            and (not scope or _parts(scope) <= set().union(*map(_parts, grant.scopes)))
        )

    def answer(self, handler: Handler) -> None:
        """Give a token for what is asked, or refuse."""
        request = self.note(handler)
        if self.fault:
            self.fault.pop(0)(handler)
            return
        url = urlsplit(handler.path)
        asked = parse_qs(url.query)
        if request.method == "POST":
            asked = parse_qs(handler.body().decode())
            handler.headers.replace_header("Content-Length", "0")
            self.forms.append(asked)
        elif self.post_only:
            handler.reply(405)
            return
        if asked.get("service") != [self.SERVICE]:
            handler.reply(400, {}, b'{"error": "invalid_request"}')
            return
        self._grant(handler, request, asked)

    def _grant(self, handler: Handler, request: Request, asked: dict[str, list[str]]) -> None:
        scopes = {scope for text in asked.get("scope", []) for scope in text.split()}
        known = self._knows(request, asked)
        if known is None:
            body = b'{"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}'
            handler.reply(401, {"Content-Type": "application/json"}, body)
            return
        if not known:
            scopes = {s for s in scopes if s.startswith("repository:public/")}
            scopes = {f"{s.rpartition(':')[0]}:pull" for s in scopes}
        token = self.sign(scopes)
        self.grants[token] = Grant(scopes, time.monotonic() + self.life)
        name = "access_token" if request.method == "POST" else "token"
        answer = {name: token, "expires_in": self.life}
        handler.reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _knows(self, request: Request, asked: dict[str, list[str]]) -> bool | None:
        """True for a user, False for nobody in particular, None for a wrong secret."""
        grant = asked.get("grant_type", [""])[0]
        if grant == "refresh_token":
            return asked["refresh_token"][0] in self.refresh or None
        if grant == "password":
            return self.users.get(asked["username"][0]) == asked["password"][0] or None
        if not request.authorization:
            return False
        pair = base64.b64decode(request.authorization.removeprefix("Basic ")).decode()
        user, _, password = pair.partition(":")
        return self.users.get(user) == password or None


def _scope(request: Request) -> str:
    """What a request needs, as docker-registry sees it."""
    match = re.match(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/", request.path)
    if not match:
        return ""
    actions = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(request.method, "pull,push")
    scope = f"repository:{match[1]}:{actions}"
    source = parse_qs(urlsplit(request.path).query).get("from")
    return f"{scope} repository:{source[0]}:pull" if source else scope


def _parts(scopes: str) -> set[tuple[str, str]]:
    """(resource, action) of each action of scopes."""
    found = [scope.rpartition(":") for scope in scopes.split()]
    return {(resource, action) for resource, _, actions in found for action in actions.split(",")}
