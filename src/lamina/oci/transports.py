"""Where images are, as skopeo writes it (containers-transports(5)).

| text | what |
|---|---|
| ``docker://NAME``, or just ``NAME`` | an image in a registry |
| ``oci:DIR[:TAG]`` | one in an image layout |
| ``oci-archive:FILE[:NAME]`` | one in the tar of a layout |
| ``docker-archive:FILE[:NAME]`` | one in what ``docker save`` writes |
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lamina.errors import InvalidImage, InvalidName, RegistryError, printable
from lamina.oci.reference import Reference

if TYPE_CHECKING:
    from lamina.oci.content import Source, Target
    from lamina.oci.descriptor import Descriptor
    from lamina.oci.platform import Spec
    from lamina.oci.registry import Options, Repository
    from lamina.progress import ProgressCallback

_REGISTRY = "docker"
_LAYOUT = "oci"
_ARCHIVES = ("oci-archive", "docker-archive")
_OTHERS = ("containers-storage", "dir", "docker-daemon", "ostree", "sif", "tarball")
_JOBS = 4
"""Blobs copied at once, where their order does not show."""


class Place(NamedTuple):
    """An image somewhere: by its name (registry), or a path and perhaps a name."""

    transport: str
    """``docker``, ``oci``, ``oci-archive`` or ``docker-archive``."""
    path: str
    """Empty for a registry."""
    name: str | None

    @classmethod
    def parse(cls, text: str) -> Place:
        """What a text means. Raises :class:`InvalidName`, which says what would be right."""
        transport, colon, rest = text.partition(":")
        if colon and transport == _REGISTRY:
            if not rest.startswith("//"):
                raise _invalid(text, "a registry's image is docker://NAME")
            return cls(_REGISTRY, "", str(Reference.parse(rest[2:])))
        if colon and transport in (_LAYOUT, *_ARCHIVES):
            path, _, name = rest.partition(":")
            if not path:
                raise _invalid(text, "there is no path")
            return cls(transport, path, name or None)
        if colon and transport in _OTHERS:
            raise _invalid(text, f"{transport} is not supported")
        if text.startswith(("/", "./", "../")):
            raise _invalid(text, "say what lies there")
        return cls(_REGISTRY, "", str(Reference.parse(text)))

    @property
    def is_archive(self) -> bool:
        """Whether it is a file that blobs go into one after the other."""
        return self.transport in _ARCHIVES

    def __str__(self) -> str:
        if self.transport == _REGISTRY:
            return f"{_REGISTRY}://{self.name}"
        return ":".join(filter(None, (self.transport, self.path, self.name)))


def is_place(text: str) -> bool:
    """Whether a text says itself where the image is, and is no bare name."""
    return text.partition(":")[0] in (_LAYOUT, *_ARCHIVES) or text.startswith(f"{_REGISTRY}://")


@contextmanager
def open_source(
    place: Place, options: Options | None = None
) -> Iterator[tuple[Source, str | None]]:
    """A source that has the image, and what the image is called in it.

    ``options`` is how a registry is spoken with.

    Raises:
        InvalidImage, InvalidArchive: what lies there is no image.
        OSError: it can't be read.
    """
    if place.transport == _REGISTRY:
        assert place.name is not None
        reference = Reference.parse(place.name)
        with closing(_repository(reference, options)) as far:
            yield far, reference.digest or reference.tag
        return
    from lamina.oci.archives import PlainTar, open_archive

    with (
        tempfile.TemporaryDirectory(prefix="lamina-", dir=_spool()) as spool,
        closing(open_archive(place.path, Path(spool))) as source,
    ):
        if isinstance(source, PlainTar):
            raise InvalidImage(f"{source.description} is no image but the tar of a file system")
        yield source, place.name


@contextmanager
def open_target(
    place: Place, options: Options | None = None, *, near: Place | None = None
) -> Iterator[tuple[Target, str | None]]:
    """A target that an image can be written to, and what it is to be called there.

    An archive appears, complete, after the block, and is not there if that fails. Where ``near``
    is in the same registry, the registry takes blobs from there.

    Raises:
        InvalidName: an image can't be written to a digest.
        InvalidImage: the directory is no layout, and not empty.
        OSError: it can't be written.
    """
    if place.transport == _REGISTRY:
        assert place.name is not None
        reference = Reference.parse(place.name)
        if reference.digest is not None:
            raise InvalidName(f"an image can't be written to a digest: {place}")
        with closing(_repository(reference, options, _mountable(reference, near))) as far:
            yield far, reference.tag
    elif place.transport == _LAYOUT:
        from lamina.oci.layout import LayoutDirectory

        with closing(LayoutDirectory.create(place.path)) as layout:
            try:
                yield layout, place.name
            except BaseException as error:
                if isinstance(error, OSError | RegistryError) or not isinstance(error, Exception):
                    kept = f"what was copied is kept in {place.path}, the same command goes on"
                    error.add_note(kept)
                raise
    else:
        from lamina.oci.archives import DockerArchiveTarget, OciArchiveTarget, replaced

        kind = OciArchiveTarget if place.transport == "oci-archive" else DockerArchiveTarget
        with replaced(Path(place.path)) as file:
            archive = kind(file, place.path)
            yield archive, place.name
            archive.close()


def copy_image(
    source: Place,
    target: Place,
    *,
    platform: Spec | None = None,
    every_platform: bool = False,
    source_options: Options | None = None,
    target_options: Options | None = None,
    progress: ProgressCallback | None = None,
) -> Descriptor:
    """Copy an image, byte for byte; what its name in the target means now.

    See :func:`lamina.oci.copying.copy` for the arguments and what it raises.
    """
    from lamina.oci.copying import copy

    with ExitStack() as stack:
        reads, name = stack.enter_context(open_source(source, source_options))
        found = reads.resolve(name)  # before the target is made
        writes, to = stack.enter_context(open_target(target, target_options, near=source))
        return copy(
            reads,
            writes,
            found,
            to,
            wanted=platform,
            every_platform=every_platform,
            jobs=1 if target.is_archive else _JOBS,
            progress=progress,
            abort=_ending(reads, writes),
        )


def _ending(*ends: Source | Target) -> Callable[[], None]:
    def end() -> None:
        for each in ends:
            if abort := getattr(each, "abort", None):
                abort()

    return end


def _repository(
    reference: Reference, options: Options | None, mount_from: tuple[str, ...] = ()
) -> Repository:
    from lamina.oci.registry import Repository

    return Repository(
        reference.registry, reference.repository, options=options, mount_from=mount_from
    )


def _mountable(target: Reference, near: Place | None) -> tuple[str, ...]:
    if near is None or near.transport != _REGISTRY or near.name is None:
        return ()
    source = Reference.parse(near.name)
    return (source.repository,) if source.registry == target.registry else ()


def _spool() -> str:
    """Where archives are decompressed: they may be larger than what /tmp has room for."""
    return os.environ.get("TMPDIR") or "/var/tmp"


def _invalid(text: str, why: str) -> InvalidName:
    return InvalidName(
        f"not the place of an image: {printable(text)!r}: {why} (docker://NAME, oci:DIR[:TAG], "
        "oci-archive:FILE[:NAME] or docker-archive:FILE[:NAME])"
    )
