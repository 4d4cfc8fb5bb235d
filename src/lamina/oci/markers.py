"""Telling an image archive from a root file system's tar, by the names in it."""

from __future__ import annotations

_MARKERS = frozenset({b"oci-layout", b"manifest.json"})


def is_image_archive_member(name: bytes) -> bool:
    """Whether a tar's entry of this name says that the tar is an image, not a file system.

    ``oci-layout`` marks an OCI image layout (image-spec, image-layout.md), ``manifest.json``
    what ``docker save`` writes. A root file system may have a file of that name; the caller
    looks at what else is there.
    """
    return name.removeprefix(b"./") in _MARKERS
