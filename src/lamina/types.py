"""Names for the strings that mean something, so that mypy keeps them apart."""

from __future__ import annotations

from typing import NewType

Digest = NewType("Digest", str)
"""``algorithm:hex`` of any bytes, as OCI descriptors write it."""

DiffId = NewType("DiffId", str)
"""Digest of a layer's uncompressed tar (OCI image-spec, config, ``rootfs.diff_ids``)."""

ChainId = NewType("ChainId", str)
"""Digest naming a layer together with everything below it (OCI image-spec, config, ChainID)."""

LayerId = NewType("LayerId", str)
"""What a driver calls a layer: a directory name, never a path."""
