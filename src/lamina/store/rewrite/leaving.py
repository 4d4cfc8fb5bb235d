"""What a rewriting leaves out of the new tree, since it is damaged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from lamina.oci.docker import Catalog, ContainerRecord, Fault, ImageRecord


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Images and containers by their names, or by ids of twelve digits where they have none."""

    images: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    names: bool = False
    """Whether no image keeps its name, since the file of names can't be read."""

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        """Such as ``image a:1 and containers b, c``."""
        parts = [
            f"{kind}{'s' * (len(names) > 1)} {', '.join(names)}"
            for kind, names in (("image", self.images), ("container", self.containers))
            if names
        ]
        return " and ".join([*parts, *["the names of all images"] * self.names])


def left_out(
    catalog: Catalog,
    images: Iterable[ImageRecord],
    containers: Iterable[ContainerRecord],
    faults: Iterable[Fault],
) -> LeftOut:
    """All that there is, without ``images`` and ``containers``, which come over."""
    over = {image.id for image in images} | {box.id for box in containers}
    damaged = dict(catalog.lost)
    damaged |= {id: image.names for id, image in catalog.images.items() if id not in over}
    return LeftOut(
        tuple(called(id, names) for id, names in sorted(damaged.items())),
        (
            *sorted(box.name for id, box in catalog.containers.items() if id not in over),
            *(id[:12] for id in sorted(catalog.lost_containers)),
        ),
        any(fault.id == "repositories.json" for fault in faults),
    )


def called(id: str, names: Iterable[str] = ()) -> str:
    """What people call an image."""
    return ", ".join(names) or id.removeprefix("sha256:")[:12]
