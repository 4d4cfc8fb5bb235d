"""What the tests of the registry client stand on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lamina.oci.registry import Options, Repository, Retries
from tests.registries import Registry
from tests.servers import Faulty, Tokens

QUICK = Retries(tries=4, first=0.01, longest=0.05, total=5)

Open = Callable[..., Repository]


@pytest.fixture(autouse=True)
def _no_credentials(no_credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(no_credentials / name))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open repositories that are closed at the end; waits are short, the machine's files not used.

    ``opened(registry, repository, mount_from=..., **options)``.
    """
    with ExitStack() as stack:

        def open_one(
            registry: str, repository: str, *, mount_from: tuple[str, ...] = (), **options: Any
        ) -> Repository:
            found = Repository(
                registry, repository, options=quick(tmp_path, **options), mount_from=mount_from
            )
            stack.callback(found.close)
            return found

        yield open_one


def quick(tmp_path: Path, **options: Any) -> Options:
    """Options for tests: ``tmp_path`` may have directories ``hosts`` and ``certs``."""
    options.setdefault("retries", QUICK)
    options.setdefault("hosts_directories", (tmp_path / "hosts",))
    options.setdefault("certificate_directories", (tmp_path / "certs",))
    return Options(**options)


@pytest.fixture
def faulty(plain_registry: Registry) -> Iterator[Faulty]:
    """A proxy before the plain registry that can go wrong."""
    with Faulty(plain_registry.host) as proxy, proxy.running():
        yield proxy


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    """A token server."""
    with Tokens() as server, server.running():
        yield server


@pytest.fixture
def guarded(plain_registry: Registry, tokens: Tokens) -> Iterator[Faulty]:
    """A proxy before the plain registry that wants tokens of ``tokens``."""
    with Faulty(plain_registry.host, tokens) as proxy, proxy.running():
        yield proxy


DATA = os.urandom(3 << 20)
