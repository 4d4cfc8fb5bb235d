"""How a registry is spoken with: what the caller may set."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamina.oci.registry.credentials import Credentials


def _certificate_directories() -> tuple[Path, ...]:
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return (
        Path(config, "containers/certs.d"),
        Path("/etc/containers/certs.d"),
        Path("/etc/docker/certs.d"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often and how long something that failed for now is tried again; times in seconds.

    The waits double from ``first`` to ``longest``, each shortened by chance to as little as half;
    a registry's ``Retry-After`` counts where it is longer.
    """

    tries: int = 6
    """Requests for one thing in all."""
    connects: int = 3
    """The same, where no connection was made."""
    silences: int = 2
    """The same, where no answer came in time."""
    first: float = 0.5
    longest: float = 30.0
    total: float = 180.0
    """All waits together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a registry is spoken with; times in seconds."""

    insecure: bool = False
    """Take any certificate, and plain HTTP where there is no TLS."""
    credentials: Credentials | None = None
    """Those of the registry itself; None: those that Docker's and containers' files have."""
    hosts_directories: tuple[Path, ...] = (Path("/etc/containerd/certs.d"),)
    """Where ``HOST/hosts.toml`` and ``_default/hosts.toml`` lie."""
    certificate_directories: tuple[Path, ...] = field(default_factory=_certificate_directories)
    """Where ``HOST/*.crt`` (authorities) and ``HOST/*.cert`` with ``*.key`` (clients') lie."""
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    """How long a server may say nothing, or take nothing."""
    first_timeout: float = 30.0
    """The same, of a server that has not answered yet."""
    chunk_size: int = 8 << 20
    """Bytes that are sent at once, and kept in memory to be sent again."""
    retries: Retries = field(default_factory=Retries)
    remark: Callable[[str], None] | None = None
    """Told, in a line for a person, when a server that says nothing is waited for again."""
