"""Blobs of layers, made of what the store has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lamina.oci import mediatypes
from lamina.store.core import Core
from lamina.store.layers import Layer, Layers
from lamina.store.transfer import known
from lamina.store.transfer.stopping import Stop
from lamina.types import Digest

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Packing:
    """How the blobs of layers are to be.

    Without ``compression`` a blob that is there is taken as it is, and what has to be made is
    compressed by gzip. ``level`` and ``threads`` are those of :func:`lamina.archive.compression`.

    Raises ValueError for a level or compression that can't be.
    """

    compression: str | None = None
    level: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        from lamina.archive.compression.compress import level_of

        level_of(self.method, self.level)

    @property
    def method(self) -> str:
        """``none``, ``gzip`` or ``zstd``: for what has to be made."""
        return self.compression or "gzip"

    @property
    def recipe(self) -> str:
        """A name of this way: the same recipe gives the same bytes of the same tar."""
        from lamina.archive.compression.compress import level_of

        return f"lamina-2 {self.method} {level_of(self.method, self.level)}"

    def fits(self, blob: known.LayerBlob) -> bool:
        """Whether a blob that is there may be taken."""
        if self.compression is None:
            return True
        if blob.compression != self.compression:
            return False
        return self.level is None or blob.recipe == self.recipe


def plain(layer: Layer) -> known.LayerBlob:
    """The blob that is the layer's tar itself."""
    assert layer.diff_id is not None
    assert layer.tar_size is not None
    digest = Digest(layer.diff_id)
    return known.LayerBlob(layer.diff_id, digest, layer.tar_size, mediatypes.OCI_LAYER)


@contextmanager
def made(
    core: Core, layer: Layer, packing: Packing, stop: Stop, progress: Callable[[int], None]
) -> Iterator[tuple[known.LayerBlob, Path]]:
    """A blob made of a layer, in a file that goes after the block.

    ``progress`` is told of the tar's bytes as they are read.
    """
    from lamina.archive.compression import Compression, compress

    assert layer.diff_id is not None
    digest, size = hashlib.sha256(), 0
    with core.leases.path() as path, Layers(core).tar(layer) as tar, open(path, "xb") as file:
        pieces = compress(
            _chunks(tar, stop, progress),
            Compression(packing.method),
            level=packing.level,
            threads=packing.threads,
        )
        with core.writing():
            for piece in pieces:
                digest.update(piece)
                size += file.write(piece)
            file.flush()
        yield (
            known.LayerBlob(
                layer.diff_id,
                Digest(f"sha256:{digest.hexdigest()}"),
                size,
                mediatypes.layer_type(packing.method),
                packing.recipe,
            ),
            path,
        )


def _chunks(stream: BinaryIO, stop: Stop, progress: Callable[[int], None]) -> Iterator[bytes]:
    while data := stream.read(_CHUNK):
        stop.check()
        progress(len(data))
        yield data
