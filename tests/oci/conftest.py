from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oci import peers


@pytest.fixture
def skopeo(tmp_path: Path) -> peers.Skopeo:
    return peers.Skopeo(tmp_path)


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[peers.Podman]:
    with peers.podman(tmp_path) as found:
        yield found
