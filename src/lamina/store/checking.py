"""Comparing what the tables say with what lies on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lamina.drivers import registry
from lamina.drivers.base import missing_elsewhere
from lamina.errors import LaminaError, LayerBroken, LayerNotFound
from lamina.oci import ImageConfig, chain_ids
from lamina.progress import Progress, ProgressCallback
from lamina.store.core import Core
from lamina.store.layers import Layer, Layers, chain
from lamina.store.removal import discard, discard_blob
from lamina.types import Digest, LayerId

Kind = Literal["database", "driver", "layer", "image", "blob", "tar-split"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be. ``repaired``: it is now."""

    kind: Kind
    id: str
    what: str
    repaired: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.id}: {self.what}{' (repaired)' if self.repaired else ''}"


def check(
    core: Core, *, repair: bool, contents: bool, progress: ProgressCallback | None
) -> list[Problem]:
    """See :meth:`Store.check`."""
    problems = [Problem("database", core.db.path.name, line) for line in core.db.damage()]
    if problems:
        return problems
    problems += _check_layers(core)
    problems += _check_images(core)
    if contents:
        problems += _check_contents(core, repair, progress)
    problems += _check_orphans(core, repair)
    return problems


def remove_orphans(core: Core) -> list[LayerId]:
    """Delete the layers that drivers hold and the tables know nothing of; returns them."""
    orphans = _orphans(core)
    with core.db.write() as tx:
        lease = core.leases.token
        tx.run_all(
            "INSERT OR IGNORE INTO pending VALUES ('layer', ?, ?, ?)",
            [(id, driver, lease) for id, driver in orphans],
        )
    discard(core, orphans)
    return [id for id, _ in orphans]


def _check_layers(core: Core) -> Iterator[Problem]:
    for layer in Layers(core):
        driver = core.driver_named(layer.driver)
        try:
            parent = driver.parent(layer.id)
        except LayerNotFound:
            yield Problem("layer", layer.id, f"missing from the driver {layer.driver}")
            continue
        except LaminaError as error:
            yield Problem("layer", layer.id, _what(error))
            continue
        place = driver.elsewhere(layer.id)
        if place is not None and not place.is_dir():
            yield Problem("layer", layer.id, missing_elsewhere(place))
        if parent != layer.parent:
            yield Problem("layer", layer.id, f"stands on {parent}, not on {layer.parent}")
        if layer.kind == "image" and not (driver.keeps_tars or core.splits.has(layer.id)):
            yield Problem("tar-split", layer.id, "no record to give the same tar back by")


def _what(error: LaminaError | OSError) -> str:
    """Without the layer, which is named before it."""
    return error.why if isinstance(error, LayerBroken) else str(error)


def _check_images(core: Core) -> Iterator[Problem]:
    with core.db.read() as tx:
        rows = tx.rows("SELECT image, driver, layer FROM image_layers")
    for id, _, top in rows:
        try:
            config = ImageConfig.decode(core.blobs.read(id))
        except LaminaError as error:
            yield Problem("image", id, str(error))
            continue
        with core.db.read() as tx:
            layers = chain(tx, top)
        if [layer.chain_id for layer in layers] != chain_ids(config.rootfs.diff_ids):
            yield Problem("image", id, "its layers are not those that its configuration names")


def _check_contents(
    core: Core, repair: bool, progress: ProgressCallback | None
) -> Iterator[Problem]:
    """Put every layer's tar together again and compare its digest: reads all files."""
    layers = Layers(core)
    every = [layer for layer in layers if layer.kind == "image"]
    total, done = sum(layer.tar_size or 0 for layer in every), 0
    for layer in every:
        try:
            for what in core.driver_named(layer.driver).verify(layer.id, repair=repair):
                yield Problem("layer", layer.id, what, repaired=True)
            _read(layers, layer)
        except (LaminaError, OSError) as error:
            yield Problem("layer", layer.id, _what(error))
        done += layer.tar_size or 0
        if progress is not None:
            progress(Progress("checking contents", done, total, "bytes"))


def _read(layers: Layers, layer: Layer) -> None:
    with layers.tar(layer) as tar:
        while tar.read(1 << 20):
            pass


def _check_orphans(core: Core, repair: bool) -> Iterator[Problem]:
    for name in _homes(core):
        if core.is_foreign(name):
            yield Problem("driver", name, "its home has layers that this store did not make")
    for id, driver in _orphans(core):
        yield Problem("layer", id, f"kept by driver {driver}, but not in the tables", repair)
    if repair:
        remove_orphans(core)
    known, splits = _known(core), core.splits.layers()
    for layer in splits:
        if layer not in known:
            yield Problem("tar-split", layer, "of a layer that is not there", repair)
            if repair:
                core.splits.remove(layer)
    for digest in _unreferenced_blobs(core):
        yield Problem("blob", digest, "of no image or layer", repair)
        if repair:
            discard_blob(core, digest)


def _known(core: Core) -> set[LayerId]:
    """Layers that are in the tables: recorded, or being made or removed by someone."""
    with core.db.read() as tx:
        rows = tx.rows("SELECT id FROM layers UNION SELECT id FROM pending WHERE kind = 'layer'")
    return {LayerId(row[0]) for row in rows}


def _homes(core: Core) -> list[str]:
    """Drivers that have, or that someone else has, something in this store's root."""
    return [name for name in registry.names() if (core.root / name).is_dir()]


def _orphans(core: Core) -> list[tuple[LayerId, str]]:
    """Layers on disk that the tables do not know, the upper ones first.

    The disk is looked at before the tables: a layer is in the tables before it is on disk.
    Layers in a home that this store did not begin are none of its.
    """
    held = [
        (id, name)
        for name in _homes(core)
        if not core.is_foreign(name)
        for id in core.driver_named(name).ids()
    ]
    known = _known(core)
    orphans = {id: name for id, name in held if id not in known}
    height: dict[LayerId, int] = {}
    for id, name in orphans.items():
        at: LayerId | None = id
        height[id] = 0
        while at in orphans:
            at = core.driver_named(name).parent(at)
            height[id] += 1
    return sorted(orphans.items(), key=lambda orphan: -height[orphan[0]])


def _unreferenced_blobs(core: Core) -> list[Digest]:
    found = list(core.blobs.digests())
    with core.db.read() as tx:
        rows = tx.rows(
            "SELECT id FROM images UNION SELECT id FROM pending WHERE kind = 'blob'"
            " UNION SELECT digest FROM layer_blobs WHERE kept"
        )
    known = {row[0] for row in rows}
    return [digest for digest in found if digest not in known]
