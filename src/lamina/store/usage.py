"""How much of a disk what takes.

Sizes are those of files as their readers see them (apparent size, not blocks), recorded when a
layer is made; only the writable layers of containers, and indexes, are measured when asked.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from lamina.drivers.registry import driver_class
from lamina.errors import ContainerNotFound, LayerNotFound
from lamina.store.containers import Containers
from lamina.store.core import Core
from lamina.store.database import Transaction
from lamina.store.images import Images
from lamina.store.layers import Layers
from lamina.store.records import fetch, fetch_in
from lamina.store.transfer.downloads import Downloads
from lamina.types import Digest, LayerId


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """Bytes of an image: of layers that other images have too, and of its own."""

    id: Digest
    names: list[str]
    shared: int
    unique: int
    containers: int
    """How many containers stand on it."""

    @property
    def size(self) -> int:
        """All layers."""
        return self.shared + self.unique


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """Bytes of a container: its own files, those that its snapshots keep, and what it stands on."""

    id: str
    name: str
    writable: int
    snapshots: int
    base: int
    """Bytes of the image below; 0 for a directory."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of a whole store. Each layer counts once."""

    images: list[ImageUsage]
    containers: list[ContainerUsage]
    layers: int
    indexes: int
    """What drivers keep beside the layers' files (:meth:`Driver.overhead`)."""
    blobs: int
    downloads: int
    """What interrupted pulls have fetched, and those that go on."""
    reclaimable: int
    """What pruning dangling images, stopped containers and interrupted downloads would give back,
    at least, while nothing is pulled."""

    @property
    def total(self) -> int:
        """Everything."""
        own = sum(box.writable + box.snapshots for box in self.containers)
        return self.layers + self.indexes + self.blobs + self.downloads + own


_IMAGE_LAYERS = """
WITH RECURSIVE uses (image, layer) AS (
    SELECT image, layer FROM image_layers WHERE layer IS NOT NULL
    UNION SELECT image, parent FROM uses JOIN layers ON layers.id = uses.layer
    WHERE parent IS NOT NULL
), counts AS (SELECT layer, count(*) AS users FROM uses GROUP BY layer)
SELECT image,
       sum(CASE WHEN users > 1 THEN coalesce(size, 0) ELSE 0 END),
       sum(CASE WHEN users = 1 THEN coalesce(size, 0) ELSE 0 END)
FROM uses JOIN counts USING (layer) JOIN layers ON layers.id = uses.layer GROUP BY image
"""
"""Bytes of each image's layers, shared and unique."""

_ABOVE_FLOOR = """
WITH RECURSIVE above (id) AS (
    SELECT ?1 UNION SELECT layer FROM snapshots WHERE container = ?2
    UNION SELECT parent FROM above JOIN layers USING (id) WHERE parent IS NOT ?3
)
SELECT id FROM above JOIN layers USING (id) WHERE kind = 'frozen'
"""
"""The frozen layers of a container: top, id, floor."""


def usage(core: Core) -> Usage:
    """What the store takes."""
    images = image_usage(core)
    containers = []
    for box in Containers(core):
        with suppress(ContainerNotFound):  # removed meanwhile
            containers.append(container_usage(core, box.id))
    with core.db.read() as tx:
        layers = tx.value("SELECT coalesce(sum(size), 0) FROM layers WHERE kind = 'image'")
        every = tx.rows("SELECT driver, id FROM layers")
    dangling = sum(image.unique for image in images if not image.names and not image.containers)
    stopped = sum(box.writable for box in containers)
    downloads = Downloads(core.root / "downloads").size()
    return Usage(
        images=images,
        containers=containers,
        layers=layers,
        indexes=sum(_overhead(core, driver, id) for driver, id in every),
        blobs=sum(map(core.blobs.size, core.blobs.digests())),
        downloads=downloads,
        reclaimable=dangling + stopped + downloads,
    )


def _overhead(core: Core, driver: str, id: LayerId) -> int:
    """:meth:`Driver.overhead`, without opening the drivers that have none."""
    return core.driver_named(driver).overhead(id) if driver_class(driver).keeps_tars else 0


def image_usage(core: Core) -> list[ImageUsage]:
    """What each image takes, the newest first."""
    with core.db.read() as tx:
        sizes = {row[0]: (row[1], row[2]) for row in tx.rows(_IMAGE_LAYERS)}
        boxes = dict(
            tuple(row) for row in tx.rows("SELECT image, count(*) FROM containers GROUP BY image")
        )
    return [
        ImageUsage(image.id, image.names, *sizes.get(image.id, (0, 0)), boxes.get(image.id, 0))
        for image in Images(core)
    ]


def container_usage(core: Core, id: str) -> ContainerUsage:
    """What one container takes. Measures its writable layer.

    Raises:
        ContainerNotFound: there is no such container, or not any more.
    """
    layers = Layers(core)
    with core.db.read() as tx:
        record = fetch_in(tx, id)
        frozen = [r[0] for r in tx.rows(_ABOVE_FLOOR, (record.layer, id, record.floor))]
        parent = tx.value("SELECT parent FROM layers WHERE id = ?", (record.layer,))
        base = _stack_size(tx, record.floor)
    try:
        writable = core.driver_named(record.driver).diff_size(record.layer, parent)
        snapshots = sum(layers.size(layers.get(layer)) for layer in frozen)
    except LayerNotFound:
        fetch(core, id)  # says so if it was removed meanwhile
        raise
    return ContainerUsage(
        id=id,
        name=record.name,
        writable=writable,
        snapshots=snapshots,
        base=base,
    )


def _stack_size(tx: Transaction, top: LayerId | None) -> int:
    size: int = tx.value(
        "WITH RECURSIVE below (id) AS (VALUES (?) UNION"
        " SELECT parent FROM below JOIN layers USING (id))"
        " SELECT coalesce(sum(size), 0) FROM below JOIN layers USING (id)",
        (top,),
    )
    return size
