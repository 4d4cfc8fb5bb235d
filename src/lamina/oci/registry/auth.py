"""Authorisation at one server: the challenge honoured, tokens kept until they expire.

Sources: distribution, docs "Token Authentication Specification" and "OAuth2 Token Authentication";
RFC 6750 (bearer tokens), RFC 7617 (basic).
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx

from lamina.errors import RegistryError, Unauthorized, printable
from lamina.oci.registry.answers import TOKEN_LIMIT, discard, json_object, read_body, refusal
from lamina.oci.registry.challenge import Challenge, parse_challenges
from lamina.oci.registry.connections import Connections, Origin, unverified
from lamina.oci.registry.credentials import Credentials
from lamina.oci.registry.hosts import Tls
from lamina.oci.registry.retry import TRANSIENT, retry_after

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamina.oci.registry.hosts import Host

Scopes = tuple[str, ...]
"""What a request needs: ``repository:NAME:pull``, and others like it; none for a mere login."""

CLIENT_ID = "lamina"
_LIFE = 60.0  # seconds that a token lives which does not say how long
_MARGIN = 5.0  # seconds before its end that a token is no longer used
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Temporary(Exception):
    """A server that could not answer for now; ``error`` is what to raise in the end."""

    def __init__(self, error: RegistryError, after: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    expires: float  # by time.monotonic

    def is_valid(self) -> bool:
        return time.monotonic() < self.expires


class Authorizer:
    """What one server is told, and by which credentials; for all threads."""

    def __init__(
        self, host: Host, connections: Connections, find: Callable[[], Credentials | None]
    ) -> None:
        self._host = host
        self._connections = connections
        self._find = find
        self._credentials: Credentials | None = None
        self._looked = False
        self._challenge: Challenge | None = None
        self._tokens: dict[Scopes, _Token] = {}
        self._lock = threading.Lock()

    def header(self, secure: bool, scopes: Scopes) -> str | None:
        """``Authorization`` for a request, by what the server has wanted before; else None.

        Raises as :meth:`answer`.
        """
        with self._lock:
            if self._challenge is None:
                return None
            return self._authorize(self._challenge, secure, scopes)

    def answer(
        self, response: httpx.Response, secure: bool, scopes: Scopes, refused: str | None, what: str
    ) -> str:
        """``Authorization`` that answers a 401; the response is closed.

        ``refused`` is what that request had said, ``secure`` whether it went by TLS.

        Raises:
            Unauthorized: there are no credentials, or they were refused.
            RegistryError: a challenge that can't be answered.
            Temporary: a token server that can't answer now, or be reached.
        """
        challenges = parse_challenges(response.headers.get_list("www-authenticate"))
        with self._lock:
            challenge = self._choose(challenges)
            if challenge is None:
                raise refusal(response, what)
            if self._tokens.get(scopes, _Token("", 0)).header == refused:
                self._tokens.pop(scopes, None)
            try:
                header = self._authorize(challenge, secure, scopes)
            except BaseException:
                discard(response)
                raise
            if header is None or header == refused:
                raise refusal(response, what)
            self._challenge = challenge
        discard(response)
        return header

    def _choose(self, challenges: list[Challenge]) -> Challenge | None:
        bearer = [c for c in challenges if c.scheme == "bearer" and c.parameters.get("realm")]
        basic = [c for c in challenges if c.scheme == "basic"]
        return next(iter(bearer + basic), None)

    def _authorize(self, challenge: Challenge, secure: bool, scopes: Scopes) -> str | None:
        credentials = self._known()
        if challenge.scheme == "basic":
            return credentials.basic() if credentials and credentials.user else None
        if credentials and credentials.registry_token:
            return f"Bearer {credentials.registry_token}"
        token = self._tokens.get(scopes)
        if token is None or not token.is_valid():
            token = self._tokens[scopes] = self._fetch(challenge, secure, scopes)
        return token.header

    def _known(self) -> Credentials | None:
        if not self._looked:
            self._credentials = self._find()
            self._looked = True
        return self._credentials

    # --- tokens

    def _fetch(self, challenge: Challenge, secure: bool, scopes: Scopes) -> _Token:
        realm = self._realm(challenge.parameters["realm"], secure)
        asked = challenge.parameters.get("scope", "").split()
        wanted = [*scopes, *(s for s in asked if not _covered(s, scopes))]
        query = [("scope", scope) for scope in wanted]
        if service := challenge.parameters.get("service"):
            query.insert(0, ("service", service))
        credentials = self._known()
        started = time.monotonic()
        try:
            document = self._ask(realm, query, credentials)
        except httpx.TransportError as error:
            failure = RegistryError(f"{self._named(realm)}: {str(error) or type(error).__name__}")
            if unverified(error):
                raise failure from error
            raise Temporary(failure, None) from error
        text = document.get("token") or document.get("access_token")
        if not isinstance(text, str) or not _TOKEN.fullmatch(text):
            raise RegistryError(f"the token server {realm.host} gave no token")
        life = document.get("expires_in")
        seconds = float(life) if isinstance(life, int | float) and 0 < life < 1e9 else _LIFE
        self._renew(credentials, document.get("refresh_token"))
        return _Token(f"Bearer {text}", started + max(seconds - _MARGIN, seconds / 2))

    def _realm(self, text: str, secure: bool) -> httpx.URL:
        """The token server's address: one by TLS, unless the registry itself has none."""
        try:
            realm = httpx.URL(text)
            origin = Origin.of(realm)
        except (httpx.InvalidURL, RegistryError) as error:
            raise RegistryError(
                f"{self._host.name} names a token server that is none: {printable(text)}"
            ) from error
        if realm.userinfo or (secure and origin.scheme != "https"):
            raise RegistryError(
                f"{self._host.name} wants its credentials sent to {printable(text)}, "
                "which is not safe"
            )
        return realm

    def _ask(
        self, realm: httpx.URL, query: list[tuple[str, str]], credentials: Credentials | None
    ) -> dict[str, Any]:
        if credentials and credentials.identity_token:
            grant = [("grant_type", "refresh_token"), ("refresh_token", credentials.identity_token)]
            return self._answer(realm, self._post(realm, [*grant, *query]))
        headers = []
        if credentials and credentials.user:
            headers.append(("Authorization", credentials.basic()))
        url = realm.copy_merge_params(_multi([*realm.params.multi_items(), *query]))
        response = self._connections.send("GET", url, headers=headers, tls=self._tls(realm))
        if response.status_code in (404, 405) and credentials and credentials.user:
            discard(response)
            grant = [("grant_type", "password"), ("username", credentials.user)]
            grant.append(("password", credentials.password))
            response = self._post(realm, [*grant, *query])
        return self._answer(realm, response)

    def _post(self, realm: httpx.URL, form: list[tuple[str, str]]) -> httpx.Response:
        scope = " ".join(value for name, value in form if name == "scope")
        fields = [(name, value) for name, value in form if name != "scope"]
        content = urlencode([*fields, ("client_id", CLIENT_ID), ("scope", scope)]).encode()
        headers = [("Content-Type", "application/x-www-form-urlencoded")]
        return self._connections.send(
            "POST", realm, headers=headers, content=content, tls=self._tls(realm)
        )

    def _answer(self, realm: httpx.URL, response: httpx.Response) -> dict[str, Any]:
        """The document of a token server, which is not followed elsewhere: it has a secret."""
        what = self._named(realm)
        if response.status_code == 200:
            return json_object(read_body(response, TOKEN_LIMIT, what), what)
        after = retry_after(response.headers.get("retry-after"))
        error = refusal(response, what)
        if response.status_code in TRANSIENT:
            raise Temporary(error, after)
        if response.status_code == 400 and error.status:  # RFC 6749: a grant that is not taken
            raise Unauthorized(str(error), status=error.status, code=error.code)
        raise error

    def _named(self, realm: httpx.URL) -> str:
        return f"a token for {self._host.name} from {realm.netloc.decode('ascii')}"

    def _tls(self, realm: httpx.URL) -> Tls:
        """The registry's own for itself; elsewhere the authorities alone."""
        ours = Origin.of(httpx.URL(self._host.base))
        tls = self._host.tls
        if (ours.host, ours.port) == (realm.host, realm.port or 443):
            return tls
        return Tls(tls.authorities, skip_verify=tls.skip_verify)

    def _renew(self, old: Credentials | None, token: Any) -> None:
        if old and old.identity_token and isinstance(token, str) and token:
            self._credentials = Credentials(old.user, old.password, token)


def _covered(scope: str, scopes: Scopes) -> bool:
    """Whether one that the challenge names is within those that are asked for anyway."""
    resource, _, actions = scope.rpartition(":")
    mine = [s.rpartition(":") for s in scopes]
    granted = {a for r, _, actions in mine if r == resource for a in actions.split(",")}
    return set(actions.split(",")) <= granted


def _multi(items: list[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in items:
        found.setdefault(name, []).append(value)
    return found
