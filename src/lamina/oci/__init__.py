"""Formats of the Open Container Initiative; no knowledge of any store."""

from __future__ import annotations

from lamina.oci.config import History as History
from lamina.oci.config import ImageConfig as ImageConfig
from lamina.oci.config import RootFs as RootFs
from lamina.oci.config import RunConfig as RunConfig
from lamina.oci.digest import chain_ids as chain_ids
from lamina.oci.digest import hex_of as hex_of
from lamina.oci.digest import sha256 as sha256
from lamina.oci.markers import is_image_archive_member as is_image_archive_member
from lamina.oci.reference import normalize as normalize

__all__ = [
    "History",
    "ImageConfig",
    "RootFs",
    "RunConfig",
    "chain_ids",
    "hex_of",
    "is_image_archive_member",
    "normalize",
    "sha256",
]
