"""Descriptors: how documents of the image specification name other content (descriptor.md)."""

from __future__ import annotations

from typing import Any, ClassVar

from lamina.oci.document import Document
from lamina.types import Digest


class Platform(Document, rename={"os_version": "os.version", "os_features": "os.features"}):
    """What an image in an index runs on (image-index.md, ``platform``)."""

    KIND: ClassVar[str] = "a platform"

    architecture: str = ""
    os: str = ""
    os_version: str | None = None
    os_features: list[str] | None = None
    variant: str | None = None


class Descriptor(Document, kw_only=True, rename="camel"):
    """Some content: its media type, digest and size in bytes.

    ``data``, base64, may hold the content itself.
    """

    KIND: ClassVar[str] = "a descriptor"

    media_type: str
    digest: Digest
    size: int
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    data: str | None = None
    artifact_type: str | None = None
    platform: Platform | None = None

    def __str__(self) -> str:
        return f"{self.digest} ({self.media_type}, {self.size} bytes)"


def described(data: bytes, media_type: str, **members: Any) -> Descriptor:
    """The descriptor of ``data``, by sha256; ``members`` are further fields."""
    from lamina.oci.digest import sha256

    return Descriptor(media_type=media_type, digest=sha256(data), size=len(data), **members)
