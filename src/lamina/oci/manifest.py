"""Manifests and indexes (image-spec, manifest.md and image-index.md), and Docker's of schema 2."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from lamina.errors import InvalidImage
from lamina.oci import mediatypes
from lamina.oci.descriptor import Descriptor
from lamina.oci.document import Document

SIZE_LIMIT = 4 << 20
"""Bytes that a manifest or index may have (distribution-spec, "Pushing Manifests")."""


class Manifest(Document, kw_only=True, rename="camel"):
    """One image: its configuration and its layers, bottom first."""

    KIND: ClassVar[str] = "an image manifest"

    schema_version: int = 2
    media_type: str = mediatypes.OCI_MANIFEST
    artifact_type: str | None = None
    config: Descriptor
    layers: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(Document, kw_only=True, rename="camel"):
    """Manifests, mostly of one image for several platforms."""

    KIND: ClassVar[str] = "an image index"

    schema_version: int = 2
    media_type: str = mediatypes.OCI_INDEX
    artifact_type: str | None = None
    manifests: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class _Head(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    config: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()
    manifests: msgspec.Raw = msgspec.Raw()
    fs_layers: msgspec.Raw = msgspec.Raw()


def decode_manifest(data: bytes, media_type: str) -> Manifest | Index:
    """What a blob of ``media_type`` is.

    A document that is a manifest and an index at once, or whose own ``mediaType`` is another one,
    is refused: what it means would depend on who reads it (CVE-2021-41190).

    Raises:
        InvalidImage: it is neither, damaged, larger than :data:`SIZE_LIMIT`, or of Docker's
            schema 1.
    """
    if len(data) > SIZE_LIMIT:
        raise InvalidImage(f"a manifest of {len(data)} bytes (at most {SIZE_LIMIT} are allowed)")
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidImage(f"not an image manifest: {error}") from error
    if head.schema_version == 1 or bytes(head.fs_layers):
        raise InvalidImage("a manifest of Docker's schema 1, which is no longer supported")
    if head.schema_version != 2:
        raise InvalidImage(f"a manifest of schemaVersion {head.schema_version}, not 2")
    if head.media_type and head.media_type != media_type:
        raise InvalidImage(f"a manifest said to be {media_type} says it is {head.media_type}")
    if media_type in mediatypes.INDEXES:
        _refuse(head.config or head.layers, "an index that has config or layers")
        index = Index.decode(data)
        index.media_type = media_type
        return index
    if media_type in mediatypes.MANIFESTS:
        _refuse(head.manifests, "a manifest that has manifests")
        manifest = Manifest.decode(data)
        manifest.media_type = media_type
        return manifest
    raise InvalidImage(f"neither a manifest nor an index: {media_type or 'no media type'}")


def _refuse(member: msgspec.Raw, what: str) -> None:
    if bytes(member):
        raise InvalidImage(what)
