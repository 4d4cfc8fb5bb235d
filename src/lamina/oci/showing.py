"""Reading manifests, indexes and configurations to show them, to the byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lamina.errors import InvalidImage
from lamina.oci.content import read_document
from lamina.oci.copying import check_platform, select
from lamina.oci.manifest import Index, decode_manifest

if TYPE_CHECKING:
    from lamina.oci.content import Source
    from lamina.oci.descriptor import Descriptor
    from lamina.oci.platform import Spec


class Shown(NamedTuple):
    """A document, and what names it."""

    descriptor: Descriptor
    data: bytes


def show_manifest(source: Source, name: str | None, wanted: Spec | None = None) -> Shown:
    """The manifest or index of a name in a source; of an index, the manifest for ``wanted``.

    An image that is in no index has to be for ``wanted``, if that is given.

    Raises:
        ImageNotFound, PlatformNotFound, AmbiguousName: there is none, or several.
        InvalidImage, DigestMismatch, BlobNotFound: something is not what it should be.
    """
    found = _read(source, source.resolve(name))
    if wanted is None:
        return found
    document = decode_manifest(found.data, found.descriptor.media_type)
    if isinstance(document, Index):
        return _read(source, select(source, document, wanted))
    check_platform(source, document, wanted)
    return found


def show_config(source: Source, name: str | None, wanted: Spec | None = None) -> Shown:
    """The configuration of an image in a source: of an index, that for ``wanted`` or this machine.

    Raises as :func:`show_manifest`.
    """
    found = show_manifest(source, name, wanted)
    document = decode_manifest(found.data, found.descriptor.media_type)
    if isinstance(document, Index):
        found = _read(source, select(source, document))
        document = decode_manifest(found.data, found.descriptor.media_type)
    if isinstance(document, Index):
        raise InvalidImage(f"{found.descriptor.digest} is no image manifest")
    from lamina.oci.config import CONFIG_LIMIT

    return Shown(document.config, read_document(source, document.config, CONFIG_LIMIT))


def _read(source: Source, descriptor: Descriptor) -> Shown:
    return Shown(descriptor, read_document(source, descriptor))
