"""What is meant by the names that someone gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from lamina.errors import AmbiguousName, InvalidName, printable
from lamina.oci import normalize
from lamina.oci.docker import ContainerRecord, ImageRecord, LayerRecord
from lamina.store.adopt.source import DockerSource

Chosen: TypeAlias = tuple[list[ImageRecord], list[ContainerRecord]]

_HEX = re.compile(r"[0-9a-f]+")


def choose(source: DockerSource, names: Sequence[str]) -> Chosen:
    """Images and containers by name or id, or by the first digits of one; all without a name.

    ``debian`` is ``debian:latest``, and where that is not there, the one image of that repository.

    Raises:
        InvalidName: nothing in the source is called that.
        AmbiguousName: several things are.
    """
    images: list[ImageRecord] = source.catalog.shown()
    boxes = sorted(source.catalog.containers.values(), key=lambda box: box.name)
    if not names:
        return images, boxes
    chosen: Chosen = ([], [])
    for name in names:
        found = _find(source, images, boxes, name)
        chosen[0].extend(image for image in found[0] if image not in chosen[0])
        chosen[1].extend(box for box in found[1] if box not in chosen[1])
    chosen[0].sort(key=lambda image: len(image.chain))
    return chosen


def layers_of(source: DockerSource, chosen: Chosen | None) -> list[LayerRecord]:
    """The layers that images and containers consist of; all that there are for None."""
    layers = source.catalog.layers
    if chosen is None:
        return list(layers.values())
    images = [*chosen[0], *(source.catalog.images[box.image] for box in chosen[1])]
    return [layers[id] for id in dict.fromkeys(id for image in images for id in image.chain)]


def _find(
    source: DockerSource, images: list[ImageRecord], boxes: list[ContainerRecord], name: str
) -> Chosen:
    full = _full(name)
    found = (
        [image for image in images if full in image.names],
        [box for box in boxes if box.name == name],
    )
    if any(found):
        return found
    digits = name.removeprefix("sha256:")
    if _HEX.fullmatch(digits):
        found = (
            [image for image in images if image.id.removeprefix("sha256:").startswith(digits)],
            [box for box in boxes if box.id.startswith(digits)],
        )
        if len(found[0]) + len(found[1]) > 1:
            fits = [image.id.removeprefix("sha256:") for image in found[0]]
            fits += [box.id for box in found[1]]
            raise AmbiguousName(f"{name} begins several ids: {', '.join(id[:12] for id in fits)}")
        if any(found):
            return found
    same = [image for image in images if any(_repository(n) == name for n in image.names)]
    if len(same) == 1:
        return same, []
    raise InvalidName(_no_such(source, same, name))


def _no_such(source: DockerSource, same: list[ImageRecord], name: str) -> str:
    shown = printable(name)[:100]
    if any(_full(name) in names for names in source.catalog.lost.values()):
        return f"image {shown} of {source.path} is missing or damaged"
    tags = sorted(n for image in same for n in image.names if _repository(n) == name)
    there = f"; it has {', '.join(tags)}" if tags else ""
    return f"{source.path} has no image or container called '{shown}'{there}"


def _full(name: str) -> str | None:
    try:
        return normalize(name)
    except InvalidName:
        return None


def _repository(name: str) -> str:
    """``debian`` of ``debian:12``; Docker's records have short names with a tag."""
    return name.rpartition(":")[0]
