"""A store that Docker 20.10.24 wrote on a kernel with AUFS (tests/data/docker-aufs)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import support

DATA = Path(__file__).parents[1] / "data/docker-aufs"


@pytest.fixture(scope="session")
def expected() -> dict[str, Any]:
    """What the AUFS kernel showed."""
    described: dict[str, Any] = json.loads((DATA / "expected.json").read_text())
    return described


@pytest.fixture
def docker_root(tmp_path: Path) -> Path:
    """The Docker root, unpacked."""
    if not support.is_root():
        support.missing("needs root (with the right to mount)")
    support.need("tar", "zstd")
    return unpack(tmp_path / "docker")


def unpack(root: Path) -> Path:
    """Unpack the Docker root into a new directory."""
    root.mkdir()
    support.run(
        "tar", "--zstd", "--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner",
        "-xpf", DATA / "docker-aufs-store.tar.zst", "-C", root,
    )  # fmt: skip
    return root


CONTAINERS = {
    "c-created": "9ecd0a2fd4a1664dfea5875c060873d5018d897ae6815c7a9d6227a99aef1ef1",
    "c-stopped": "5d646d05e8eb824f58e3519581d9b8a92fe64488161237d5dc04cf9b7fa195eb",
    "c-running": "0f85dad7cb725fff5098b62e328e76b11fdbb7c10b36006f377816137618752c",
    "c-difffail": "589b65cfddc6e65eef894b2452ebd5e662dd19290271b1a93ea2e2ed17e7f43b",
}
