"""What an adoption or a rewriting leaves out, since it is damaged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lamina.oci.docker import Catalog, ContainerRecord, Fault, FaultKind, ImageRecord


@dataclass(slots=True)
class LeftOut:
    """Images and containers by their names, or by ids of twelve digits where they have none."""

    images: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    names: bool = False
    """Whether no image keeps its name, since the file of names can't be read."""

    def __bool__(self) -> bool:
        return bool(self.images or self.containers or self.names)

    def __str__(self) -> str:
        """Such as ``image a:1 and containers b, c``."""
        parts = [
            f"{kind}{'s' * (len(names) > 1)} {', '.join(names)}"
            for kind, names in (("image", self.images), ("container", self.containers))
            if names
        ]
        return " and ".join([*parts, *["the names of all images"] * self.names])

    def add(self, kind: FaultKind, name: str) -> None:
        """Another one; once."""
        names = self.images if kind == "image" else self.containers
        if name not in names:
            names.append(name)

    def add_lost(self, catalog: Catalog) -> None:
        """What is so damaged that there is not even a record of it."""
        for id, names in sorted(catalog.lost.items()):
            self.add("image", called(id, names))
        for id in sorted(catalog.lost_containers):
            self.add("container", id[:12])


def left_out(
    catalog: Catalog,
    images: Iterable[ImageRecord],
    containers: Iterable[ContainerRecord],
    faults: Iterable[Fault],
) -> LeftOut:
    """All that there is, without ``images`` and ``containers``, which come over."""
    over = {image.id for image in images} | {box.id for box in containers}
    found = LeftOut(names=any(fault.id == "repositories.json" for fault in faults))
    found.add_lost(catalog)
    for image in sorted(catalog.images.values(), key=lambda image: (len(image.chain), image.names)):
        if image.id not in over:
            found.add("image", called(image.id, image.names))
    for name in sorted(box.name for id, box in catalog.containers.items() if id not in over):
        found.add("container", name)
    return found


def damaged(catalog: Catalog, faults: Iterable[Fault]) -> LeftOut:
    """What of a Docker root can't come over, of all that ``docker images`` shows."""
    faults = list(faults)
    bad = {fault.id for fault in faults}
    hidden = {image.id for image in catalog.images.values()}
    hidden -= {image.id for image in catalog.shown()}
    sound = [
        image
        for image in catalog.images.values()
        if image.id in hidden or not bad.intersection(image.chain)
    ]
    boxes = [
        box
        for box in catalog.containers.values()
        if box.name not in bad and not bad.intersection(catalog.images[box.image].chain)
    ]
    return left_out(catalog, sound, boxes, faults)


def called(id: str, names: Iterable[str] = ()) -> str:
    """What people call an image."""
    return ", ".join(names) or id.removeprefix("sha256:")[:12]
