"""Images from registries, and to them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from lamina.errors import InvalidName
from lamina.oci import normalize
from lamina.oci.manifest import Manifest
from lamina.oci.reference import Reference
from lamina.oci.registry import Options, Repository
from lamina.store.core import Core
from lamina.store.images import Image
from lamina.store.transfer import known
from lamina.store.transfer.downloads import Downloads
from lamina.store.transfer.loading import Loading
from lamina.store.transfer.making import Packing
from lamina.store.transfer.saving import Saved, Saving
from lamina.types import Digest

if TYPE_CHECKING:
    from lamina.oci.descriptor import Descriptor
    from lamina.oci.platform import Spec
    from lamina.progress import ProgressCallback

_UPLOADS = 3
"""Layers that are made and sent at once."""


def pull(
    core: Core,
    text: str,
    *,
    platform: Spec | None,
    keep_blobs: bool,
    options: Options | None,
    progress: ProgressCallback | None,
) -> Image:
    """See :meth:`lamina.store.Store.pull`."""
    reference = Reference.parse(text)
    names = [normalize(f"{reference.name}:{reference.tag}")] if reference.tag else []
    with closing(Repository(reference.registry, reference.repository, options=options)) as far:
        loading = Loading(
            core,
            far,
            fetch=True,
            keep_blobs=keep_blobs,
            platform=platform,
            progress=progress,
            abort=far.abort,
        )
        descriptor = far.resolve(reference.digest or reference.tag)
        try:
            image = loading.load(descriptor, names, f"pulling {reference.familiar}")
        except BaseException as error:
            if not isinstance(error, Exception) and Downloads(core.root / "downloads").size():
                error.add_note("what was fetched is kept, the same command goes on")
            raise
    _remember(core, image, reference, descriptor.digest)
    return image


def push(
    core: Core,
    image: Image,
    text: str,
    packing: Packing,
    *,
    options: Options | None,
    progress: ProgressCallback | None,
) -> Saved:
    """See :meth:`lamina.store.Store.push`."""
    reference = Reference.parse(text)
    if reference.digest is not None:
        raise InvalidName(f"an image can't be pushed to a digest: {text}")
    with closing(Repository(reference.registry, reference.repository, options=options)) as far:

        def mount(descriptor: Descriptor) -> bool:
            with core.db.read() as tx:
                places = known.locations(tx, descriptor.digest, reference.registry)
            others = (place for place in places if place != reference.repository)
            return any(far.mount(descriptor, place) for place in others)

        saving = Saving(
            core,
            far,
            packing,
            nearby=mount,
            jobs=_UPLOADS,
            progress=progress,
            abort=far.abort,
        )
        saved = saving.save(image, [str(reference)], f"pushing {reference.familiar}")
    _remember(core, image, reference, saved.manifest.digest)
    return saved


def _remember(core: Core, image: Image, reference: Reference, digest: Digest) -> None:
    """Note that a repository has an image by this digest, and the blobs of its newest manifest."""
    with core.db.write() as tx:
        known.remember_location(tx, digest, reference.registry, reference.repository)
        for _, document in known.manifests(tx, image.id)[:1]:
            manifest = Manifest.decode(document)
            for blob in (manifest.config, *manifest.layers):
                digest = Digest(blob.digest)
                known.remember_location(tx, digest, reference.registry, reference.repository)
