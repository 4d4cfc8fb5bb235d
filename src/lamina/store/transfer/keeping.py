"""Keeping the blobs of layers as they came, so that an image goes out with the same digests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.oci.content import verified
from lamina.store.core import Core
from lamina.store.removal import discard_blob, doom_blob
from lamina.store.transfer import known
from lamina.store.transfer.blobs import layer_tar
from lamina.store.transfer.downloads import Download, Downloads
from lamina.store.transfer.stopping import Stop
from lamina.types import Digest

if TYPE_CHECKING:
    from lamina.oci.content import Source
    from lamina.store.transfer.resolving import Part


def keep_blobs(core: Core, source: Source, parts: Sequence[Part]) -> None:
    """Keep the blob of each layer; what is not there any more from the transfer is fetched.

    The layers are held by the caller's work: a blob goes when the last layer of its tar does.

    Raises:
        DigestMismatch, InvalidImage, InvalidArchive: a blob is not what it was said to be.
        BlobNotFound, RegistryError, OSError: it can't be had. Those before it are kept.
    """
    downloads, stop = Downloads(core.root / "downloads"), Stop()
    for part in parts:
        if _known(core, part, kept=True):
            continue
        with downloads.claim(part.descriptor, stop) as path:
            if _known(core, part, kept=True):  # by another process, while we waited
                continue
            download = Download(path, part.descriptor, stop)
            try:
                download.run(source)
                _verify(download, part, unpacked=_known(core, part, kept=False))
            finally:
                download.close()
            _keep(core, path, part)


def _known(core: Core, part: Part, *, kept: bool) -> bool:
    """Whether the blob is known to be the layer's, and, if that is asked for, was kept."""
    with core.db.read() as tx:
        found = known.blobs(tx, part.diff_id)
    return any(b.digest == part.descriptor.digest and b.kept >= kept for b in found)


def _verify(download: Download, part: Part, *, unpacked: bool) -> None:
    """Read the blob. Of a layer that was there before, a manifest may name any blob as its."""
    try:
        with (
            download.open() as blob,
            verified(blob, part.descriptor) if unpacked else layer_tar(blob, part) as stream,
        ):
            while stream.read(1 << 20):
                pass
    except Exception:
        download.path.unlink(missing_ok=True)
        raise


def _keep(core: Core, path: Path, part: Part) -> None:
    digest = Digest(part.descriptor.digest)
    core.blobs.prepare(digest)
    if core.durable:
        _sync(path)
    with core.db.write() as tx:
        doom_blob(tx, digest, core.leases.token)
    try:
        with core.db.write(durable=core.durable) as tx:
            core.blobs.keep(path, digest)
            known.remember_blob(tx, known.of_part(part, kept=True))
    finally:
        discard_blob(core, digest)  # stays, if it was recorded


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
