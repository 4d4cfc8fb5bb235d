"""Giving disk space back: what nobody needs any more."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from lamina.errors import ContainerNotFound, ContainerRunning, LayerBroken, LayerNotFound
from lamina.store.checking import remove_orphans
from lamina.store.container import Container, State
from lamina.store.containers import Containers
from lamina.store.core import Core
from lamina.store.images import Images
from lamina.store.layers import Layers
from lamina.store.removal import discard, release
from lamina.store.transfer.downloads import Downloads
from lamina.store.usage import container_usage
from lamina.types import LayerId


@dataclass(slots=True)
class Pruned:
    """What went. ``size``: bytes of files in the layers that went, as far as they are known,
    without those that someone else keeps, and of what interrupted pulls had fetched."""

    containers: list[str] = field(default_factory=list)
    """Names."""
    images: list[str] = field(default_factory=list)
    """Ids."""
    layers: list[LayerId] = field(default_factory=list)
    size: int = 0


def prune(core: Core, *, containers: bool, unused: bool) -> Pruned:
    """See :meth:`Store.prune`."""
    pruned = Pruned()
    before = _layers(core, frozen=containers)
    if containers:
        for box in Containers(core):
            pruned.size += _remove_stopped(core, box, pruned)
    images = Images(core)
    for image in images:
        if images.remove_unused(image, named=unused):
            pruned.images.append(image.id)
    _release_unused(core)
    after = _layers(core, frozen=False)
    gone = before.keys() - after.keys()
    pruned.size += sum(before[id] for id in gone)
    pruned.layers = [*sorted(gone), *remove_orphans(core)]
    pruned.size += Downloads(core.root / "downloads").sweep()
    return pruned


def _release_unused(core: Core) -> None:
    """Remove image layers that nothing refers to, such as an interrupted adoption leaves."""
    with core.db.write() as tx:
        tops = tx.rows(
            "SELECT id FROM layers AS top WHERE kind = 'image'"
            " AND NOT EXISTS (SELECT 1 FROM layers WHERE parent = top.id)"
        )
        lease = core.leases.token
        doomed = [gone for (top,) in tops for gone in release(tx, top, lease)]
    discard(core, doomed)


def _remove_stopped(core: Core, box: Container, pruned: Pruned) -> int:
    """Remove a kept container that nobody uses; returns the bytes that it had written."""
    try:
        if not box.kept or box.state not in (State.CREATED, State.EXITED):
            return 0
        try:
            size = container_usage(core, box.id).writable
        except LayerBroken:
            size = 0  # what it stands on is gone
        box.remove()
    except (ContainerNotFound, ContainerRunning):
        return 0  # removed, or used again, by another process
    pruned.containers.append(box.name)
    return size


def _layers(core: Core, *, frozen: bool) -> dict[LayerId, int]:
    """All layers, and the bytes of the files that would go with each; 0 for writable ones.

    Those of containers below the top are measured with ``frozen`` only.
    """
    found = {}
    layers = Layers(core)
    for layer in layers:
        size = layer.size or 0
        if core.driver_named(layer.driver).elsewhere(layer.id) is not None:
            size = 0
        elif frozen and layer.kind == "frozen":
            with suppress(LayerNotFound):  # removed by another process
                size = layers.size(layer)
        found[layer.id] = size
    return found
