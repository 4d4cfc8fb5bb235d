"""New images: from a tar, from a container, from another image with fewer layers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from lamina.errors import InvalidName
from lamina.oci import History, ImageConfig, RootFs, RunConfig
from lamina.oci.config import timestamp
from lamina.oci.epoch import source_date_epoch
from lamina.progress import ProgressCallback
from lamina.store.core import Core
from lamina.store.images import Image, Images
from lamina.store.layers import Layer, Layers
from lamina.store.packing import Xattrs, pack_options
from lamina.store.records import fetch
from lamina.store.work import Work
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.store.container import Container


def import_tar(
    core: Core,
    source: str | os.PathLike[str] | BinaryIO,
    name: str | None,
    *,
    what: str,
    config: RunConfig | None,
    progress: ProgressCallback | None,
    root_fs: bool = True,
) -> Image:
    """An image of one layer from the tar of a root file system."""
    layers, images = Layers(core), Images(core)
    image = ImageConfig.for_this_machine()
    image.config = config
    with Work(core) as work:
        layer = layers.register(source, work=work, what=what, root_fs=root_fs, progress=progress)
        _append(image, layer, History(created=image.created, comment=what))
        return images.create(image, layer, _names(name))


def commit(
    core: Core,
    container: Container,
    name: str | None,
    *,
    message: str,
    author: str,
    squash: bool,
    config: RunConfig | None,
    xattrs: Xattrs,
) -> Image:
    """An image of what a container is now. See :meth:`Container.commit`."""
    layers, images = Layers(core), Images(core)
    record = fetch(core, container.id)
    core.require_driver(record.driver, f"container {record.name}")
    below = None if squash else _image_layer(layers, record.floor)
    epoch = source_date_epoch()
    with Work(core) as work:
        pack = container.export if squash else container.diff
        with pack(xattrs=xattrs, clamp_mtime=epoch) as tar:
            layer = layers.register(tar, below, work=work, what=f"committing {record.name}")
        origin = container.image
        image = ImageConfig.for_this_machine() if origin is None else origin.config.copy()
        image.created = timestamp()
        image.author = author or image.author
        image.config = config or image.config
        if squash:
            _forget_layers(image)
        _append(
            image,
            layer,
            History(
                created=image.created,
                created_by=" ".join(record.command) or None,
                author=author or None,
                comment=message or None,
            ),
        )
        return images.create(image, layer, _names(name))


def squash(core: Core, image: Image, first: int, last: int, name: str | None) -> Image:
    """An image like ``image`` whose layers ``first`` to ``last`` are one.

    Layers are counted from 0 at the bottom, both ends are included. What is below stays
    shared with ``image``; what is above is unpacked anew, since it stands on another layer,
    and keeps its DiffID.

    Raises:
        InvalidName: there are no such layers.
    """
    layers, images = Layers(core), Images(core)
    old = image.layers
    if not 0 <= first <= last < len(old):
        raise InvalidName(f"image {image.short_id} has no layers {first} to {last}")
    driver = core.driver
    with Work(core) as work:
        below = old[first - 1] if first else None
        parent = None if below is None else below.id
        # All that the layers have came with them, and is no less theirs in one.
        with driver.diff(
            old[last].id, parent, options=pack_options("all", compare_contents=True)
        ) as tar:
            new = [layers.register(tar, below, work=work, what="squashing")]
        for layer in old[last + 1 :]:
            with layers.tar(layer) as tar:
                new.append(layers.register(tar, new[-1], work=work, diff_id=layer.diff_id))
        config = image.config.copy()
        _squash_history(config, first, last)
        config.rootfs.diff_ids[first:] = [layer.diff_id for layer in new if layer.diff_id]
        config.created = timestamp()
        return images.create(config, new[-1], _names(name))


def _image_layer(layers: Layers, floor: LayerId | None) -> Layer | None:
    """What a commit stands on: the floor, or, below a floor that no image has, the next image's.

    A container that Docker made counts its changes from what Docker puts into every container,
    and that is no part of any image.
    """
    return next((layer for layer in reversed(layers.chain(floor)) if layer.kind == "image"), None)


def _append(image: ImageConfig, layer: Layer, step: History) -> None:
    assert layer.diff_id is not None
    image.rootfs.diff_ids.append(layer.diff_id)
    image.history = [*(image.history or ()), step]


def _forget_layers(image: ImageConfig) -> None:
    """Keep the history as steps that made no layer of their own, as ``docker build --squash``."""
    image.rootfs = RootFs()
    for step in image.history or ():
        step.empty_layer = True


def _squash_history(config: ImageConfig, first: int, last: int) -> None:
    """Let the steps of layers ``first`` to ``last`` be empty; one after them stands for all."""
    steps = config.history
    if not steps:
        return
    of_layer = [place for place, step in enumerate(steps) if not step.empty_layer]
    if len(of_layer) != len(config.rootfs.diff_ids):
        config.history = None  # it does not fit the layers: better none than a wrong one
        return
    for layer in range(first, last + 1):
        steps[of_layer[layer]].empty_layer = True
    comment = f"squashed {last - first + 1} layers"
    steps.insert(of_layer[last] + 1, History(created=timestamp(), comment=comment))


def _names(name: str | None) -> list[str]:
    return [] if name is None else [name]
