"""What :class:`lamina.store.Store` offers of transfers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias, cast

from lamina.errors import InvalidImage, InvalidName
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


AnySource: TypeAlias = "str | os.PathLike[str] | BinaryIO | Source"
"""A path of a layout or archive, a stream of an archive, or any source of images."""

AnyTarget: TypeAlias = "str | os.PathLike[str] | BinaryIO | Target"
"""A path, a stream for an archive, or any target."""

Form: TypeAlias = Literal["docker-archive", "oci-archive", "oci"]
"""``docker save``'s archive; an OCI image layout as a tar; the same as a directory."""


def load(
    core: Core,
    source: AnySource,
    wanted: Sequence[str],
    name: str | None,
    *,
    platform: Spec | None,
    keep_blobs: bool,
    loaded: Callable[[Image, Sequence[str]], None] | None,
    progress: ProgressCallback | None,
) -> list[Image]:
    """See :meth:`lamina.store.Store.load`."""
    with _source(core, source) as opened:
        found = _wanted(opened, wanted)
        if not found:
            raise InvalidImage(f"{opened.description} has no image")
        if name is not None and len(found) != 1:
            raise InvalidImage(
                f"{opened.description} has {len(found)} images, and only one can be called {name}"
            )
        loading = Loading(core, opened, keep_blobs=keep_blobs, platform=platform, progress=progress)
        images = []
        for named in found:
            names = [normalize(each) for each in ([name] if name else named.names)]
            what = f"loading {names[0] if names else named.descriptor.digest[7:19]}"
            images.append(loading.load(named.descriptor, names, what))
            if loaded is not None:
                loaded(images[-1], names)
        return images


@contextmanager
def _source(core: Core, source: AnySource) -> Iterator[Source]:
    """The source of images that something is, closed after the block if it was opened here."""
    from lamina.oci.archives import PlainTar, open_archive

    if not isinstance(source, str | os.PathLike) and not hasattr(source, "read"):
        yield source
        return
    with core.leases.path() as spool:
        spool.mkdir(mode=0o700)
        with closing(open_archive(cast("str | BinaryIO", source), spool)) as opened:
            if isinstance(opened, PlainTar):
                raise InvalidImage(
                    f"{opened.description} is no image but the tar of a file system: "
                    "'lamina import' makes an image of it"
                )
            yield opened


def _wanted(source: Source, wanted: Sequence[str]) -> list[Named]:
    """The images of a source, or those of some names.

    By a digest, or a tag that is good in that layout alone, an image is found but gets no name.
    """
    from lamina.oci.content import Named

    every = list(source.images())
    if not wanted:
        return every
    found = []
    for text in wanted:
        descriptor = source.resolve(text)
        there = {
            n
            for named in every
            if named.descriptor.digest == descriptor.digest
            for n in named.names
        }
        found.append(Named(descriptor, tuple(there & _full_name(text))))
    return found


def _full_name(text: str) -> set[str]:
    try:
        return {str(Reference.parse(text))}
    except InvalidName:
        return set()


def save(
    core: Core,
    images: Sequence[tuple[Image, Sequence[str]]],
    target: AnyTarget,
    form: Form,
    packing: Packing | None,
    progress: ProgressCallback | None,
) -> list[Saved]:
    """Write images, each with some names, to a target."""
    if form == "docker-archive":
        if packing is not None and packing.compression not in (None, "none"):
            raise InvalidImage(
                "layers in a docker-archive are not compressed (Docker before 25 could not load "
                "them): compress the whole archive, or save as oci-archive"
            )
        packing = None
    else:
        packing = packing or Packing()
    with _target(target, form) as opened:
        saving = Saving(core, opened, packing, progress=progress)
        saved = []
        for image, names in images:
            full = [str(Reference.parse(name)) for name in names]
            what = f"saving {names[0] if names else image.short_id}"
            saved.append(saving.save(image, full, what))
        return saved


@contextmanager
def _target(target: AnyTarget, form: Form) -> Iterator[Target]:
    """A target; a file appears, complete, after the block, and is not there if it fails."""
    from lamina.oci.archives import DockerArchiveTarget, OciArchiveTarget, replaced
    from lamina.oci.layout import LayoutDirectory

    kind = DockerArchiveTarget if form == "docker-archive" else OciArchiveTarget
    if isinstance(target, str | os.PathLike):
        if form == "oci":
            with closing(LayoutDirectory.create(target)) as layout:
                yield layout
            return
        with replaced(Path(target)) as file:
            archive = kind(file, str(target))
            yield archive
            archive.close()
    elif hasattr(target, "write"):
        archive = kind(cast(BinaryIO, target))
        yield archive
        archive.close()
    else:
        yield target
