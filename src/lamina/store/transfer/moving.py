"""What :class:`lamina.store.Store` offers of transfers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamina.errors import ImageNotFound, InvalidImage
from lamina.oci import normalize
from lamina.oci.reference import Reference
from lamina.store.core import Core
from lamina.store.images import Image
from lamina.store.transfer.loading import Loading
from lamina.store.transfer.making import Packing
from lamina.store.transfer.saving import Saved, Saving

if TYPE_CHECKING:
    from lamina.oci.content import Named, Source, Target
    from lamina.oci.platform import Spec
    from lamina.progress import ProgressCallback


def load(
    core: Core,
    source: Source,
    wanted: Sequence[str],
    name: str | None,
    *,
    platform: Spec | None,
    keep_blobs: bool,
    progress: ProgressCallback | None,
) -> list[Image]:
    """See :meth:`lamina.store.Store.load`."""
    found = _wanted(source, wanted)
    if not found:
        raise InvalidImage(f"{source.description} has no image")
    if name is not None and len(found) != 1:
        raise InvalidImage(
            f"{source.description} has {len(found)} images, and only one can be called {name}"
        )
    loading = Loading(core, source, keep_blobs=keep_blobs, platform=platform, progress=progress)
    images = []
    for named in found:
        names = [normalize(each) for each in ([name] if name else named.names)]
        what = f"loading {names[0] if names else named.descriptor.digest[7:19]}"
        images.append(loading.load(named.descriptor, names, what))
    return images


def _wanted(source: Source, wanted: Sequence[str]) -> list[Named]:
    """The images of a source, or those of some names."""
    every = list(source.images())
    if not wanted:
        return every
    found = []
    for text in wanted:
        name = str(Reference.parse(text))
        match = next((named for named in every if name in named.names), None)
        if match is None:
            there = ", ".join(sorted(n for named in every for n in named.names)) or "no names"
            raise ImageNotFound(text, f"{source.description} has: {there}")
        found.append(match._replace(names=(name,)))
    return found


def save(
    core: Core,
    images: Sequence[tuple[Image, Sequence[str]]],
    target: Target,
    packing: Packing | None,
    progress: ProgressCallback | None,
) -> list[Saved]:
    """Write images, each with some names, to a target."""
    saving = Saving(core, target, packing, progress=progress)
    saved = []
    for image, names in images:
        full = [str(Reference.parse(name)) for name in names]
        saved.append(saving.save(image, full, f"saving {names[0] if names else image.short_id}"))
    return saved
