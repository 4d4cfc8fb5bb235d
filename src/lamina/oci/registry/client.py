"""Requests to a registry: its mirrors and itself in order, authorised, redirected, tried again.

What this does about failures, in one place: of a mirror any failure leads to the next host. The
registry itself is asked again, after a wait (:mod:`lamina.oci.registry.retry`), when the connection
broke or it answered with a status that may pass; every other status is final.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NoReturn

import httpx

from lamina.errors import LaminaError, RegistryError, Unauthorized
from lamina.oci.registry.answers import discard, read_body, refusal
from lamina.oci.registry.auth import Authorizer, Scopes, Temporary
from lamina.oci.registry.connections import Connections, Origin, no_network, unverified
from lamina.oci.registry.credentials import Credentials, find_credentials
from lamina.oci.registry.hosts import Host, Tls, find_hosts
from lamina.oci.registry.options import Options
from lamina.oci.registry.retry import TRANSIENT, Attempts, retry_after

_REDIRECTS = 10
_ERRNO = re.compile(r"^\[Errno -?[0-9]+\] ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, whichever host answers it."""

    method: str
    path: str
    """Below ``/v2``, with its query; or a whole address that the registry itself has given."""
    what: str
    """For messages: ``repository library/debian, tag 12``."""
    repository: str = ""
    scopes: Scopes = ()
    capability: str = "pull"
    accept: Collection[int] = (200,)
    """The statuses that the caller knows what to do with."""
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes | None = field(default=None, repr=False)
    bulk: bool = False
    again: bool = True
    """Whether to ask again after a failure."""
    timeout: float | None = None
    """Seconds, instead of those of the options."""


class ConnectionBroken(RegistryError):
    """No connection, or one that broke: it may be another time."""


class Client:
    """Speaks with one registry; any number of threads and repositories may share it."""

    def __init__(self, registry: str, options: Options | None = None) -> None:
        self.registry = registry
        self.options = options or Options()
        self._hosts = find_hosts(registry, self.options)
        self._connections = Connections(self.options)
        self._authorizers: dict[tuple[Host, str], Authorizer] = {}
        self._plain: set[Host] = set()
        self._down: set[Host] = set()
        self._met: set[Host] = set()  # by whichever scheme

    @property
    def requests(self) -> int:
        """How many requests were sent, those to token servers and redirected ones too."""
        return self._connections.requests

    def close(self) -> None:
        """Give up all connections; requests in other threads end with :class:`RegistryError`."""
        self._connections.close()

    def ask(self, ask: Ask) -> httpx.Response:
        """The answer to a request, of one of its ``accept`` statuses; close it.

        Raises:
            Unauthorized: credentials are missing or refused.
            RegistryError: everything else, and the connection can't be made or breaks.
        """
        *mirrors, last = self._hosts_for(ask)
        for host in mirrors:
            if host in self._down:
                continue
            try:
                response = self._exchange(host, ask)
            except (httpx.TransportError, Temporary, LaminaError) as error:
                self._check_open()
                if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    self._down.add(host)  # each request would wait for it again
                continue
            if response.status_code in ask.accept and response.status_code < 400:
                return response
            discard(response)
        try:
            return self._persist(last, ask)
        except Unauthorized as error:
            raise self._login_wanted(error) from error

    def fetch(self, ask: Ask, limit: int) -> tuple[httpx.Response, bytes]:
        """The answer and all of its body, of ``limit`` bytes at most; as :meth:`ask`.

        An answer that is cut off is asked for again.
        """
        attempts = Attempts(self.options.retries)
        what = f"{self.registry}: {ask.what}"
        while True:
            response = self.ask(ask)
            try:
                return response, read_body(response, limit, what)
            except httpx.TransportError as error:
                self._check_open(error)
                wait = attempts.next()
                if wait is None:
                    raise RegistryError(f"{what}: cut off: {error}") from error
                self.pause(wait)

    def _hosts_for(self, ask: Ask) -> list[Host]:
        """Who is asked: of an address in full its own host; what is written goes to one place."""
        if "://" in ask.path:
            url = httpx.URL(ask.path)
            return [next((h for h in self._hosts if _same_place(url, h)), self._hosts[-1])]
        *mirrors, server = self._hosts
        able = [host for host in mirrors if ask.capability in host.capabilities]
        if ask.capability in server.capabilities or not able:
            able.append(server)
        return able[:1] if ask.capability == "push" else able

    # --- one host

    def _persist(self, host: Host, ask: Ask) -> httpx.Response:
        attempts = Attempts(self.options.retries)
        while True:
            after, connected, silent = None, True, False
            try:
                response = self._exchange(host, ask)
            except httpx.TransportError as error:
                self._check_open(error)
                failure, temporary = self._unreachable(host, ask, error)
                connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                silent = isinstance(error, httpx.TimeoutException)
            except Temporary as error:
                failure, temporary, after = error.error, True, error.after
            else:
                if response.status_code in ask.accept:
                    return response
                after = retry_after(response.headers.get("retry-after"))
                temporary = response.status_code in TRANSIENT
                ours = _same_place(response.request.url, host)
                failure = refusal(response, self._named(host, ask), ours=ours)
            wait = None
            if ask.again and temporary:
                wait = attempts.next(after, connected=connected, silent=silent)
            if wait is None:
                raise failure
            if silent and self.options.remark is not None:
                self.options.remark(f"{failure}; asking again")
            self.pause(wait)

    def _exchange(self, host: Host, ask: Ask) -> httpx.Response:
        """One answer: a challenge is answered once, redirects are followed."""
        try:
            response = self._authorized(host, ask)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if not self._may_be_plain(host, error):
                raise
            self._plain.add(host)
            try:
                return self._authorized(host, ask)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                self._plain.discard(host)
                raise error from None
        self._met.add(host)
        return response

    def _may_be_plain(self, host: Host, error: httpx.TransportError) -> bool:
        """Whether plain HTTP is to be tried: asked for, and TLS has never worked."""
        return (
            host.plain_too
            and host not in self._plain | self._met
            and _same_place(error.request.url, host)
            and not unverified(error)
        )

    def _authorized(self, host: Host, ask: Ask) -> httpx.Response:
        url = self._url(host, ask)
        if not _same_place(url, host):  # an upload that goes on elsewhere
            return self._send(host, url, ask, None)
        authorizer = self._authorizer(host, ask.repository)
        secure = url.scheme == "https"
        header = authorizer.header(secure, ask.scopes)
        response = self._send(host, url, ask, header)
        if response.status_code == 401 and _same_place(response.request.url, host):
            what = self._named(host, ask)
            header = authorizer.answer(response, secure, ask.scopes, header, what)
            response = self._send(host, url, ask, header)
        return response

    def _send(self, host: Host, url: httpx.URL, ask: Ask, header: str | None) -> httpx.Response:
        own = [*host.headers, *([("Authorization", header)] if header else [])]
        start = Origin.of(url)
        for _ in range(_REDIRECTS):
            trusted = Origin.of(url) == start and _same_place(url, host)
            response = self._connections.send(
                ask.method,
                url,
                headers=[*ask.headers, *own] if trusted else ask.headers,
                content=ask.content,
                tls=host.tls if trusted else Tls(host.tls.authorities),
                bulk=ask.bulk,
                timeout=self._patience(host, ask),
            )
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            url = self._redirected(host, response, ask)
        raise RegistryError(f"{self._named(host, ask)}: over {_REDIRECTS} redirects")

    def _patience(self, host: Host, ask: Ask) -> float | None:
        """Seconds that an answer may take; None for the usual."""
        if ask.timeout is not None or host in self._met:
            return ask.timeout
        return min(self.options.first_timeout, self.options.read_timeout)

    def _redirected(self, host: Host, response: httpx.Response, ask: Ask) -> httpx.URL:
        location = response.headers.get("location", "")
        discard(response)
        if ask.method not in ("GET", "HEAD"):
            self._refuse(host, ask, f"redirected, {ask.method} is not sent elsewhere", response)
        try:
            url = response.request.url.join(location)
            origin = Origin.of(url)
        except (httpx.InvalidURL, RegistryError):
            self._refuse(host, ask, "redirected to what is no address", response)
        if response.request.url.scheme == "https" and origin.scheme != "https":
            self._refuse(host, ask, f"redirected from TLS to http://{origin.host}", response)
        return url

    # --- what all of it stands on

    def _url(self, host: Host, ask: Ask) -> httpx.URL:
        base = host.base
        if host in self._plain:
            base = base.replace("https://", "http://", 1)
        if "://" in ask.path:
            url = httpx.URL(ask.path)
            if Origin.of(url).scheme == "http" and base.startswith("https:"):
                if _same_place(url, host):  # a proxy ends its TLS, and it does not know
                    return url.copy_with(scheme="https")
                raise RegistryError(f"{self._named(host, ask)}: goes on at http://{url.host}")
            return url
        url = httpx.URL(base + ask.path)
        return url.copy_merge_params({"ns": host.namespace}) if host.namespace else url

    def _authorizer(self, host: Host, repository: str) -> Authorizer:
        def find() -> Credentials | None:
            own = self.options.credentials
            if own is not None and host is self._hosts[-1]:
                return own
            name = self.registry if host.namespace is None else host.name
            return find_credentials(name, repository)

        key = host, repository
        found = self._authorizers.get(key)
        if found is None:
            found = Authorizer(host, self._connections, find)
            found = self._authorizers.setdefault(key, found)
        return found

    def pause(self, seconds: float) -> None:
        """Wait; :class:`RegistryError` if :meth:`close` was called meanwhile."""
        self._connections.closed.wait(seconds)
        self._check_open()

    def _check_open(self, error: Exception | None = None) -> None:
        if self._connections.closed.is_set():
            raise RegistryError(f"{self.registry}: the connections were closed") from error

    def _named(self, host: Host, ask: Ask) -> str:
        where = "" if host.name == self.registry else f" (at {host.name})"
        return f"{self.registry}{where}: {ask.what}"

    def _refuse(self, host: Host, ask: Ask, why: str, response: httpx.Response) -> NoReturn:
        raise RegistryError(f"{self._named(host, ask)}: {why}", status=response.status_code)

    def _login_wanted(self, error: Unauthorized) -> Unauthorized:
        """The error with what to do about it, if that is a login."""
        if error.status == 403:
            return error
        if self.options.credentials is None:
            hint = f"'lamina login {self.registry}' makes a login"
        else:
            hint = "the user and the password that were given are refused"
        return Unauthorized(f"{error} ({hint})", status=error.status, code=error.code)

    def _unreachable(
        self, host: Host, ask: Ask, error: httpx.TransportError
    ) -> tuple[RegistryError, bool]:
        """The error of a connection that was not made or broke, and whether it may yet be."""
        why = _ERRNO.sub("", str(error)) or type(error).__name__
        if "WRONG_VERSION_NUMBER" in why:  # what OpenSSL makes of an answer in plain HTTP
            why = "it does not speak TLS (--insecure: plain HTTP is spoken then)"
        if isinstance(error, httpx.TimeoutException):
            why = "no answer in time" if isinstance(error, httpx.ReadTimeout) else "timed out"
        if no_network(error):
            why += " (if this machine has no other way out, HTTPS_PROXY names a proxy)"
        if unverified(error):
            place = f"/etc/docker/certs.d/{host.name}/ca.crt"
            why += f" (its authority's certificate can be put in {place})"
        final = unverified(error) or isinstance(
            error, httpx.UnsupportedProtocol | httpx.LocalProtocolError
        )
        message = f"{self._named(host, ask)}: {why}"
        return (RegistryError(message), False) if final else (ConnectionBroken(message), True)


def _same_place(url: httpx.URL, host: Host) -> bool:
    """Whether an address is on a host, whichever of its schemes is spoken."""
    base = httpx.URL(host.base)
    return (url.host, url.port) == (base.host, base.port)
