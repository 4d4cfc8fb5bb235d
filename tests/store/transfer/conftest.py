"""A registry with something wrong before it, and images in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamina.oci.registry import Options, Repository, Retries
from lamina.store import Store
from tests.oci.images import Made, put
from tests.registries import Registry
from tests.servers import Faulty

QUICK = Retries(tries=3, first=0.01, longest=0.05, total=2)


@pytest.fixture(autouse=True)
def _no_credentials(no_credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(no_credentials / name))


@pytest.fixture
def proxy(plain_registry: Registry) -> Iterator[Faulty]:
    """Before a registry that anyone may write to."""
    with Faulty(plain_registry.host) as found, found.running():
        yield found


def options(**members: Any) -> Options:
    """No settings of this machine's, and no long waits."""
    members.setdefault("retries", QUICK)
    return Options(hosts_directories=(), certificate_directories=(), **members)


def publish(host: str, repository: str, made: Made, *tags: str, **members: Any) -> None:
    """Let a registry have an image."""
    far = Repository(host, repository, options=options(**members))
    try:
        put(far, made, *tags)
    finally:
        far.close()


def fetched_whole(store: Store, made: Made) -> set[str]:
    """Digests of the layers' blobs that wait for the next pull."""
    had = {path.name: path.stat().st_size for path in (store.root / "downloads").glob("sha*[!k]")}
    return {
        layer.digest
        for layer, data in made.blobs[1:]
        if had.get(layer.digest.replace(":", "-")) == len(data)
    }
