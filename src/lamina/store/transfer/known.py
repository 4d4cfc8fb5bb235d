"""What the tables know of manifests, and of the blobs that layers are."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lamina.oci import mediatypes
from lamina.oci.descriptor import Descriptor
from lamina.oci.reference import Reference
from lamina.store.database import Transaction
from lamina.store.transfer.resolving import Part
from lamina.types import DiffId, Digest

_IF_THERE = "WHERE EXISTS (SELECT 1 FROM images WHERE id = ?)"


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A blob that a layer's tar is known to be."""

    diff_id: DiffId
    digest: Digest
    size: int
    """Bytes of the blob."""
    media_type: str
    recipe: str | None = None
    """How Lamina made it, and can make it again; None for what others made."""
    kept: bool = False
    """Whether it lies in ``blobs/``."""

    @property
    def is_plain(self) -> bool:
        """Whether it is the tar itself."""
        return str(self.digest) == str(self.diff_id)

    @property
    def descriptor(self) -> Descriptor:
        """As a manifest names it."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=self.size)

    @property
    def oci_descriptor(self) -> Descriptor:
        """As a manifest of OCI names it, whatever type it came by."""
        media_type = mediatypes.layer_type(self.compression)
        return Descriptor(media_type=media_type, digest=self.digest, size=self.size)

    @property
    def compression(self) -> str:
        """``none``, ``gzip`` or ``zstd``."""
        return mediatypes.layer_compression(self.media_type)


def of_part(part: Part, *, kept: bool = False) -> LayerBlob:
    """The blob that a layer came as."""
    named = part.descriptor
    return LayerBlob(part.diff_id, named.digest, named.size, named.media_type, kept=kept)


def resolved(tx: Transaction, digest: Digest, platform: str) -> Digest | None:
    """The image that the digest of an index or manifest came to on a platform."""
    found = tx.value(
        "SELECT image FROM resolved WHERE digest = ? AND platform = ?", (digest, platform)
    )
    return None if found is None else Digest(found)


def remember_resolved(tx: Transaction, digest: Digest, platform: str, image: Digest) -> None:
    """Let :func:`resolved` know, unless the image was removed meanwhile."""
    tx.run(
        f"INSERT OR REPLACE INTO resolved SELECT ?, ?, ? {_IF_THERE}",
        (digest, platform, image, image),
    )


def remember_manifest(
    tx: Transaction, image: Digest, descriptor: Descriptor, document: bytes
) -> None:
    """Keep a manifest of an image as long as the image is there; the newest comes first."""
    tx.run(
        f"INSERT OR REPLACE INTO manifests SELECT ?, ?, ?, ?, ? {_IF_THERE}",
        (descriptor.digest, image, descriptor.media_type, document, time.time(), image),
    )


def manifests(tx: Transaction, image: Digest) -> list[tuple[Descriptor, bytes]]:
    """The manifests that are known of an image, the newest first."""
    rows = tx.rows(
        "SELECT digest, media_type, document FROM manifests WHERE image = ?"
        " ORDER BY created DESC, digest",
        (image,),
    )
    return [
        (Descriptor(media_type=row[1], digest=Digest(row[0]), size=len(row[2])), row[2])
        for row in rows
    ]


def remember_blob(tx: Transaction, blob: LayerBlob) -> None:
    """Record a blob of a layer; what is known of it already stays known."""
    tx.run(
        "INSERT INTO layer_blobs VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " recipe = coalesce(recipe, excluded.recipe), kept = max(kept, excluded.kept)",
        (blob.diff_id, blob.digest, blob.size, blob.media_type, blob.recipe, int(blob.kept)),
    )


def blobs(tx: Transaction, diff_id: DiffId) -> list[LayerBlob]:
    """The blobs that a layer's tar is known to be; kept ones first."""
    rows = tx.rows(
        "SELECT * FROM layer_blobs WHERE diff_id = ? ORDER BY kept DESC, digest", (diff_id,)
    )
    return [
        LayerBlob(DiffId(row[0]), Digest(row[1]), row[2], row[3], row[4], bool(row[5]))
        for row in rows
    ]


def remember_location(tx: Transaction, digest: Digest, registry: str, repository: str) -> None:
    """Note that a repository has a blob."""
    tx.run(
        "INSERT OR REPLACE INTO locations VALUES (?, ?, ?, ?)",
        (digest, registry, repository, time.time()),
    )


def names(tx: Transaction, image: Digest) -> list[Reference]:
    """By which digests of manifests and indexes repositories have an image; the last seen first."""
    rows = tx.rows(
        "SELECT registry, repository, digest FROM locations WHERE digest IN"
        " (SELECT digest FROM resolved WHERE image = ?1"
        " UNION SELECT digest FROM manifests WHERE image = ?1)"
        " ORDER BY seen DESC, registry, repository, digest",
        (image,),
    )
    return [Reference(row[0], row[1], None, row[2]) for row in rows]


def locations(tx: Transaction, digest: Digest, registry: str) -> list[str]:
    """Repositories of a registry that had a blob, the one seen last first."""
    rows = tx.rows(
        "SELECT repository FROM locations WHERE digest = ? AND registry = ? ORDER BY seen DESC",
        (digest, registry),
    )
    return [row[0] for row in rows]
