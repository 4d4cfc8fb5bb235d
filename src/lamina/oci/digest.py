"""Digests and the chain ids made of them (OCI image-spec: descriptor.md, config.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lamina.errors import InvalidName
from lamina.types import ChainId, DiffId, Digest

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


def sha256(data: bytes) -> Digest:
    """The digest of some bytes, ``sha256:HEX``."""
    import hashlib  # loads OpenSSL

    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hex_of(digest: str) -> str:
    """The 64 hex digits of a sha256 digest; anything else raises :class:`InvalidName`."""
    if not _SHA256.fullmatch(digest):
        raise InvalidName(f"not a sha256 digest: {digest[:100]!r}")
    return digest[7:]


def chain_ids(diff_ids: Iterable[DiffId]) -> list[ChainId]:
    """One chain id a layer, bottom first.

    ``ChainID(L0) = DiffID(L0)``, ``ChainID(L0..Ln) = sha256(ChainID(L0..Ln-1) " " DiffID(Ln))``
    (image-spec, config.md, "Layer ChainID").
    """
    chain: list[ChainId] = []
    for diff_id in diff_ids:
        chain.append(next_chain_id(chain[-1] if chain else None, diff_id))
    return chain


def next_chain_id(parent: ChainId | None, diff_id: DiffId) -> ChainId:
    """The chain id of a layer upon the chain ``parent`` (None: upon nothing)."""
    if parent is None:
        return ChainId(diff_id)
    return ChainId(sha256(f"{parent} {diff_id}".encode("ascii")))
