"""Digests and the chain ids made of them (OCI image-spec: descriptor.md, config.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lamina.errors import InvalidImage, InvalidName
from lamina.types import ChainId, DiffId, Digest

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_REGISTERED = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")


def sha256(data: bytes) -> Digest:
    """The digest of some bytes, ``sha256:HEX``."""
    import hashlib  # loads OpenSSL

    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hex_of(digest: str) -> str:
    """The 64 hex digits of a sha256 digest; anything else raises :class:`InvalidName`."""
    if not _SHA256.fullmatch(digest):
        raise InvalidName(f"not a sha256 digest: {digest[:100]!r}")
    return digest[7:]


def check_digest(text: str) -> Digest:
    """``text`` as a digest, if it is one of a registered algorithm (sha256, sha512).

    Raises :class:`InvalidImage`; so what comes back is also safe as part of a path or an address.
    """
    if not _REGISTERED.fullmatch(text):
        raise InvalidImage(f"not a sha256 or sha512 digest: {text[:150]!r}")
    return Digest(text)


def parts(digest: Digest) -> tuple[str, str]:
    """Algorithm and hex digits of a digest, checked as by :func:`check_digest`."""
    algorithm, _, digits = check_digest(digest).partition(":")
    return algorithm, digits


def hasher(digest: Digest) -> Hash:
    """A new hash of the digest's algorithm; :class:`InvalidImage` for one not registered."""
    import hashlib

    return hashlib.new(parts(digest)[0])


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
