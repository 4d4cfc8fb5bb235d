from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemons
from tests.oci import peers


@pytest.fixture
def skopeo(tmp_path: Path) -> peers.Skopeo:
    return peers.Skopeo(tmp_path)


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[peers.Podman]:
    with peers.podman(tmp_path) as found:
        yield found


@pytest.fixture(scope="session")
def _dockerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemons.Docker]:
    with daemons.dockerd(tmp_path_factory.mktemp("docker")) as found:
        yield found


@pytest.fixture
def docker(_dockerd: daemons.Docker) -> Iterator[daemons.Docker]:
    """A dockerd 20.10 without images."""
    yield _dockerd
    if images := set(_dockerd.lines("images", "--all", "--quiet", "--no-trunc")):
        _dockerd("rmi", "--force", *images)


@pytest.fixture(scope="session")
def _containerd() -> Iterator[daemons.Containerd]:
    with daemons.containerd() as found:
        yield found


@pytest.fixture
def containerd(_containerd: daemons.Containerd) -> Iterator[daemons.Containerd]:
    """A containerd without images."""
    yield _containerd
    if images := _containerd("images", "ls", "--quiet").split():
        _containerd("images", "rm", "--sync", *images)
