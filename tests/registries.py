"""Registries of the tests' own, on loopback: Debian's docker-registry, storing on disk.

Three fixtures, one process a session each, so that a test takes a repository's name that no other
test has (the fixture ``repository_name``):

- ``plain_registry``: plain HTTP, anyone may do everything
- ``basic_registry``: plain HTTP, with basic authorisation (htpasswd)
- ``tls_registry``: TLS by a certification authority that nobody else knows; offers HTTP/2

``serve(directory, ...)`` starts another one, with other settings.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import support

_PATIENCE = 30  # seconds
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_names = itertools.count()

USER, PASSWORD = "ann", "pass:word"


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that runs."""

    host: str
    """HOST:PORT, as in the name of an image."""
    log: Path
    user: str | None = None
    password: str | None = None
    ca: Path | None = None
    """The file of the authority, where it has TLS."""

    @property
    def url(self) -> str:
        """Scheme and host."""
        return f"{'https' if self.ca else 'http'}://{self.host}"

    def skopeo(self, side: str) -> list[str]:
        """The options of ``skopeo copy`` for it as ``src`` or ``dest``."""
        options = [f"--{side}-tls-verify=false"]
        if self.user:
            options.append(f"--{side}-creds={self.user}:{self.password}")
        return options

    def requests(self) -> list[str]:
        """What was asked since it started: ``GET /v2/...``, one for each answered request."""
        return re.findall(r'"([A-Z]+ \S*/v2/\S*) HTTP/', self.log.read_text(errors="replace"))


class Authority:
    """A certification authority of this session, and what it signed for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        try:
            import trustme
        except ImportError:
            support.missing("needs trustme (pip)")
        self._ca = trustme.CA()
        self.directory = directory
        self.ca = directory / "ca.crt"
        self._ca.cert_pem.write_to_path(self.ca)
        self.certificate = directory / "server.crt"
        self.key = directory / "server.key"
        self.issue("127.0.0.1", self.certificate, self.key)

    def server_context(self) -> ssl.SSLContext:
        """That of a server with the certificate for 127.0.0.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def web_token(self, service: str, scopes: set[str]) -> str:
        """A signed token for some scopes (distribution, "Token Authentication Implementation")."""
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        certificate = ssl.PEM_cert_to_DER_cert(self.certificate.read_text().split("\n\n")[0])
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(certificate).decode()]}
        parts = [scope.split(":") for scope in scopes]
        access = [{"type": t, "name": n, "actions": a.split(",")} for t, n, a in parts]
        now = int(time.time())
        claims = {
            "iss": "tests", "sub": "", "aud": service, "exp": now + 300, "nbf": now - 5,
            "iat": now, "jti": str(next(_names)), "access": access,
        }  # fmt: skip
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = key.sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
        numbers = utils.decode_dss_signature(signature)
        return f"{signed}.{_base64url(b''.join(n.to_bytes(32, 'big') for n in numbers))}"

    def issue(self, name: str, certificate: Path, key: Path) -> None:
        """A certificate, with its chain, and its key, for servers and clients."""
        issued = self._ca.issue_cert(name, common_name=name)
        issued.private_key_pem.write_to_path(key)
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@contextmanager
def serve(
    directory: Path,
    *,
    basic: bool = False,
    authority: Authority | None = None,
    clients: bool = False,
    settings: dict[str, Any] | None = None,
) -> Iterator[Registry]:
    """A registry with its storage, configuration and log in ``directory``.

    ``clients``: it wants a certificate of the authority from its clients. ``settings`` are further
    members of its configuration.
    """
    support.need("docker-registry")
    http: dict[str, Any] = {"secret": "of the tests"}
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"accesslog": {"disabled": False}, "level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "storage")},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": http,
    }
    if basic:
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(_htpasswd(directory))}}
    if authority is not None:
        http["tls"] = {"certificate": str(authority.certificate), "key": str(authority.key)}
        if clients:
            http["tls"]["clientcas"] = [str(authority.ca)]
    log = directory / "log"
    with _started(directory / "config.yml", config | (settings or {}), log) as host:
        ca = authority.ca if authority is not None else None
        user, password = (USER, PASSWORD) if basic else (None, None)
        yield Registry(host, log, user, password, ca)


def _htpasswd(directory: Path) -> Path:
    support.need("htpasswd")
    path = directory / "htpasswd"
    path.write_bytes(support.run("htpasswd", "-Bbn", "-C", "4", USER, PASSWORD).stdout)
    return path


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _started(path: Path, config: dict[str, Any], log: Path) -> Iterator[str]:
    process, port = None, 0
    for _ in range(5):  # another process may be quicker to take the port
        port = free_port()
        config["http"]["addr"] = f"127.0.0.1:{port}"
        path.write_text(json.dumps(config))  # JSON is YAML
        with log.open("wb") as sink:
            process = subprocess.Popen(
                ["docker-registry", "serve", path], stdin=subprocess.DEVNULL, stdout=sink,
                stderr=sink, env={"PATH": _PATH, "OTEL_TRACES_EXPORTER": "none"},
            )  # fmt: skip
        if _came_up(process, port):
            break
        _end(process)
    else:
        pytest.fail(f"docker-registry did not come up:\n{log.read_text()[-3000:]}")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        _end(process)


def _came_up(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return process.poll() is None
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def authority(ground: Path) -> Authority:
    """The certification authority of this session."""
    directory = ground / "authority"
    directory.mkdir()
    return Authority(directory)


@pytest.fixture(scope="session")
def plain_registry(ground: Path) -> Iterator[Registry]:
    """A registry without TLS and authorisation."""
    directory = ground / "plain-registry"
    directory.mkdir()
    with serve(directory) as found:
        yield found


@pytest.fixture(scope="session")
def basic_registry(ground: Path) -> Iterator[Registry]:
    """A registry without TLS that wants USER and PASSWORD."""
    directory = ground / "basic-registry"
    directory.mkdir()
    with serve(directory, basic=True) as found:
        yield found


@pytest.fixture(scope="session")
def tls_registry(ground: Path, authority: Authority) -> Iterator[Registry]:
    """A registry with TLS, with a certificate by ``authority``."""
    directory = ground / "tls-registry"
    directory.mkdir()
    with serve(directory, authority=authority) as found:
        yield found


@pytest.fixture
def repository_name() -> str:
    """The name of a repository that no other test has."""
    return f"tests/repository-{next(_names)}"


@pytest.fixture
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials or proxies, whatever the user has; its path."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return home
