"""Layers, images and containers as Docker's files describe them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lamina.errors import printable
from lamina.oci.config import ImageConfig
from lamina.types import ChainId, DiffId, Digest

FaultKind = Literal["layer", "image", "container", "name", "branch"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is missing or damaged."""

    kind: FaultKind
    id: str
    what: str
    cause: str = ""
    """Id of what it stands on, if it is that which is missing or damaged."""

    def __str__(self) -> str:
        return f"{self.kind} {printable(self.id)}: {self.what}"


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer of an image: ``layerdb/sha256/CHAIN``."""

    chain_id: ChainId
    diff_id: DiffId
    parent: ChainId | None
    cache_id: str
    """What the storage driver calls it."""
    size: int
    """Bytes of its files, as Docker counted them."""

    @property
    def split(self) -> str:
        """Its tar-split record, below the root."""
        return f"{layer_directory(self.chain_id)}/tar-split.json.gz"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image, and the chain ids of its layers, bottom first."""

    id: Digest
    data: bytes
    """The configuration as it lies there: its digest is the id."""
    config: ImageConfig
    chain: tuple[ChainId, ...]
    names: tuple[str, ...] = ()
    parent: Digest | None = None
    """The image that it was built on, where it was built here."""


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container that is not running; times are None where they never were."""

    id: str
    name: str
    image: Digest
    chain: ChainId | None
    """The top layer of the image."""
    mount_id: str
    """What the storage driver calls its writable layer."""
    init_id: str | None
    """And the layer below with what Docker puts into every container."""
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_dir: str = ""
    hostname: str = ""
    network: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[tuple[str, str, bool], ...] = ()
    """Path on the host, in the container, whether read-only."""
    created: datetime.datetime | None = None
    started: datetime.datetime | None = None
    finished: datetime.datetime | None = None
    exit_code: int = 0


def layer_directory(chain_id: ChainId) -> str:
    """Where a layer's files are, below the root."""
    return f"image/aufs/layerdb/{chain_id.replace(':', '/')}"
