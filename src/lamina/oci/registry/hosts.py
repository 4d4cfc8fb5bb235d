"""Which servers speak for a registry: itself, its mirrors, and how each is to be trusted.

Sources: containerd, docs/hosts.md (``hosts.toml``); docker, "Verify repository client with
certificates" and containers-certs.d(5) (directories of certificates).
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lamina.errors import InvalidName, RegistryError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamina.oci.registry.options import Options

CAPABILITIES = frozenset({"pull", "resolve", "push"})
_SERVERS = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_NAME}|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")


@dataclass(frozen=True, slots=True)
class Tls:
    """How a server proves who it is, beside the authorities of the system, and how we do."""

    authorities: tuple[Path, ...] = ()
    clients: tuple[tuple[Path, Path | None], ...] = ()
    """Files of certificates and of their keys (None: in the same file)."""
    skip_verify: bool = False


SYSTEM = Tls()
"""The authorities of the system alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A server that has a registry's content, or some of it."""

    base: str
    """``https://HOST:PORT/v2``, no slash at its end."""
    capabilities: frozenset[str] = CAPABILITIES
    """Of ``pull`` (by digest), ``resolve`` (of tags), ``push``."""
    tls: Tls = SYSTEM
    headers: tuple[tuple[str, str], ...] = ()
    plain_too: bool = False
    """Where it has no TLS, plain HTTP may be spoken."""
    namespace: str | None = None
    """Of a mirror: the registry that it stands for, which it is told."""

    @property
    def name(self) -> str:
        """HOST or HOST:PORT."""
        return urlsplit(self.base).netloc


def check_registry(registry: str) -> str:
    """``registry`` if it is HOST or HOST:PORT; else :class:`InvalidName`."""
    if not _HOST.fullmatch(registry):
        raise InvalidName(f"not a registry (HOST or HOST:PORT): {printable(registry)!r}")
    return registry


def find_hosts(registry: str, options: Options) -> list[Host]:
    """The servers of a registry in the order they are asked in; the last is the registry itself.

    Raises:
        InvalidName: ``registry`` is no host.
        RegistryError: a ``hosts.toml`` that says what it can't.
    """
    check_registry(registry)
    for directory in _hosts_directories(registry, options):
        path = directory / "hosts.toml"
        if path.is_file():
            return _from_toml(path, registry, options)
        if directory.is_dir() and directory.name != "_default":
            return [_server(registry, {}, directory, registry, options)]
    return [_server(registry, {}, None, registry, options)]


def is_loopback(host: str) -> bool:
    """Whether a HOST or HOST:PORT never leaves this machine."""
    name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _hosts_directories(registry: str, options: Options) -> Iterator[Path]:
    host, colon, port = registry.rpartition(":")
    names = [f"{host}_{port}_"] if colon and port.isdigit() else []
    for name in (*names, registry, "_default"):
        yield from (directory / name for directory in options.hosts_directories)


def _from_toml(path: Path, registry: str, options: Options) -> list[Host]:
    try:
        document = tomllib.loads(path.read_text())
        mirrors = [
            _host(url, table, path.parent, registry, options)
            for url, table in document.get("host", {}).items()
        ]
        server = str(document.get("server") or registry)
        return [*mirrors, _server(server, document, path.parent, registry, options)]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise RegistryError(f"{path}: {error}") from error
    except AttributeError as error:
        raise RegistryError(f"{path}: 'host' is to be tables") from error


def _server(
    server: str, table: dict[str, Any], directory: Path | None, registry: str, options: Options
) -> Host:
    """The registry itself, whatever ``capabilities`` the file's top level leaves to it."""
    return _host(_SERVERS.get(server, server), table, directory, registry, options)


def _host(
    url: str, table: dict[str, Any], directory: Path | None, registry: str, options: Options
) -> Host:
    """One server as ``table`` of a file in ``directory`` has it."""
    parts = urlsplit(url if "://" in url else f"//{url}")
    if parts.scheme not in ("", "http", "https") or not _HOST.fullmatch(parts.netloc):
        raise ValueError(f"not the address of a registry: {printable(url)}")
    tls = _tls(table, directory, parts.netloc, options)
    plain_too = not parts.scheme and (
        options.insecure or (is_loopback(parts.netloc) and not (tls.authorities or tls.clients))
    )
    path = parts.path.rstrip("/")
    if not table.get("override_path") and not path.endswith("/v2"):
        path += "/v2"
    own = parts.netloc in (registry, _SERVERS.get(registry))
    return Host(
        base=f"{parts.scheme or 'https'}://{parts.netloc}{path}",
        capabilities=_capabilities(table),
        tls=tls,
        headers=tuple(_headers(table.get("header", {}))),
        plain_too=plain_too,
        namespace=None if own else registry,
    )


def _capabilities(table: dict[str, Any]) -> frozenset[str]:
    found = frozenset(table.get("capabilities") or CAPABILITIES)
    if unknown := found - CAPABILITIES - {"referrers"}:
        raise ValueError(f"unknown capabilities: {', '.join(sorted(map(str, unknown)))}")
    return found


def _headers(table: dict[str, str | list[str]]) -> Iterator[tuple[str, str]]:
    for name, values in table.items():
        for value in [values] if isinstance(values, str) else values:
            yield name, str(value)


def _tls(table: dict[str, Any], directory: Path | None, host: str, options: Options) -> Tls:
    places = [parent / host for parent in options.certificate_directories]
    if directory is not None and not (directory / "hosts.toml").is_file():
        places.append(directory)
    here = directory or Path()
    return Tls(
        authorities=(
            *(here / name for name in _strings(table.get("ca"))),
            *(file for place in places for file in _files(place, ".crt")),
        ),
        clients=(
            *_clients(table.get("client"), here),
            *((f, f.with_suffix(".key")) for p in places for f in _files(p, ".cert")),
        ),
        skip_verify=bool(table.get("skip_verify")) or options.insecure,
    )


def _strings(value: Any) -> list[str]:
    """A string, or several, as hosts.toml has both."""
    found = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(item, str) for item in found):
        raise ValueError(f"not a path or paths: {value!r}")
    return found


def _clients(value: Any, here: Path) -> Iterator[tuple[Path, Path | None]]:
    """``client``: a file, files, or pairs of a certificate's and a key's file."""
    for item in [value] if isinstance(value, str) else value or ():
        names = _strings(item)
        if not 1 <= len(names) <= 2:
            raise ValueError(f"client: not a certificate and a key: {item!r}")
        yield here / names[0], here / names[1] if names[1:] and names[1] else None


def _files(directory: Path, suffix: str) -> list[Path]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in names if name.endswith(suffix)]
