"""An image from the store to a target: each layer as a blob that is there, or is made."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, cast

from lamina.oci import mediatypes
from lamina.oci.content import verified
from lamina.oci.descriptor import Descriptor, described
from lamina.oci.manifest import Manifest
from lamina.progress import Progress, ProgressCallback
from lamina.store.core import Core
from lamina.store.images import Image
from lamina.store.layers import Layer, Layers
from lamina.store.transfer import known
from lamina.store.transfer.making import Packing, made, plain
from lamina.store.transfer.stopping import Stop, Watched, results
from lamina.types import DiffId

if TYPE_CHECKING:
    from lamina.oci.content import Target


@dataclass(frozen=True, slots=True)
class Saved:
    """What an image became in a target."""

    manifest: Descriptor
    changed: tuple[DiffId, ...]
    """DiffIDs of layers that came as a blob of another digest than the one that went out."""
    sent: int
    """Bytes of blobs that were sent, not counting what the target had."""


class Saving:
    """Writes images of a store to one target.

    Args:
        target: where to.
        packing: how blobs are to be; None: layers go as plain tars (docker-archive).
        nearby: asks the target to take a blob from somewhere near it; whether it did.
        jobs: how many layers at once.
        abort: lets what waits for the target in other threads wait no longer.
    """

    def __init__(
        self,
        core: Core,
        target: Target,
        packing: Packing | None,
        *,
        nearby: Callable[[Descriptor], bool] = lambda _: False,
        jobs: int = 1,
        progress: ProgressCallback | None = None,
        abort: Callable[[], None] = lambda: None,
    ) -> None:
        self._core = core
        self._target = target
        self._packing = packing
        self._nearby = nearby
        self._jobs = jobs
        self._progress = progress
        self._abort = abort
        self._layers = Layers(core)
        self._stop = Stop()
        self._sent = 0
        self._done = 0
        self._mutex = threading.Lock()

    def save(self, image: Image, names: Sequence[str], what: str) -> Saved:
        """Write an image; in the target it gets ``names`` (none: it has no name there).

        Raises:
            LayerBroken, DigestMismatch: a layer is not what it was.
            RegistryError, OSError: the target can't be written.
        """
        config = self._core.blobs.read(image.id)
        before = self._sent
        blobs = self._send_layers(image.layers, what)
        with self._core.db.read() as tx:
            originals = known.manifests(tx, image.id)
            came = {blob.diff_id: known.blobs(tx, blob.diff_id) for blob in blobs}
        manifest, document = self._manifest(config, blobs, originals)
        self._send_config(Manifest.decode(document).config, config)
        for name in names or (None,):
            self._target.put_manifest(manifest, document, name)
        with self._core.db.write(durable=self._core.durable) as tx:
            if self._packing is not None:
                known.remember_manifest(tx, image.id, manifest, document)
        return Saved(manifest, _changed(blobs, came), self._sent - before)

    # -- layers

    def _send_layers(self, layers: Sequence[Layer], what: str) -> list[known.LayerBlob]:
        self._done = 0
        total = sum(layer.tar_size or 0 for layer in layers)
        with ThreadPoolExecutor(max(1, min(self._jobs, len(layers))), "lamina-send") as pool:
            futures = [pool.submit(self._send_layer, layer) for layer in layers]

            def report() -> None:
                if self._progress is not None:
                    self._progress(Progress(what, min(self._done, total), total, "bytes"))

            def end() -> None:
                self._stop.set()
                self._abort()
                pool.shutdown(wait=False, cancel_futures=True)

            return results(futures, report=report, end=end)

    def _send_layer(self, layer: Layer) -> known.LayerBlob:
        """Have a blob of the layer in the target."""
        way = _Way(layer.tar_size or 0, self._count)
        if self._packing is None or self._packing.compression == "none":
            blob = self._send_plain(layer, way)
        else:
            blob = self._send_known(layer, self._packing, way) or self._send_made(
                layer, self._packing, way
            )
        way.arrive()
        return blob

    def _send_known(self, layer: Layer, packing: Packing, way: _Way) -> known.LayerBlob | None:
        """Have a blob in the target that there is already; None if there is none that fits."""
        assert layer.diff_id is not None
        with self._core.db.read() as tx:
            there = [b for b in known.blobs(tx, layer.diff_id) if packing.fits(b)]
        # What it came as before what was made of it.
        for blob in sorted(there, key=lambda blob: blob.recipe is not None):
            if self._target.has(blob.descriptor) or self._nearby(blob.descriptor):
                return blob
            if blob.kept:
                step = way.step(blob.size)
                self._put(blob.descriptor, partial(self._open_kept, blob), step)
                return blob
        return None

    def _send_plain(self, layer: Layer, way: _Way) -> known.LayerBlob:
        blob = plain(layer)
        if not self._target.has(blob.descriptor) and not self._nearby(blob.descriptor):
            step = way.step(blob.size)
            self._put(blob.descriptor, partial(self._layers.tar, layer), step)
        return blob

    def _send_made(self, layer: Layer, packing: Packing, way: _Way) -> known.LayerBlob:
        making = way.step(layer.tar_size or 0, half=True)
        with made(self._core, layer, packing, self._stop, making) as (blob, path):
            if not self._target.has(blob.descriptor) and not self._nearby(blob.descriptor):
                self._put(blob.descriptor, partial(io.FileIO, path), way.step(blob.size))
        with self._core.db.write() as tx:
            known.remember_blob(tx, blob)
        return blob

    def _open_kept(self, blob: known.LayerBlob) -> BinaryIO:
        return verified(self._core.blobs.open(blob.digest), blob.descriptor)

    def _put(
        self,
        descriptor: Descriptor,
        open_blob: Callable[[], BinaryIO],
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Send a blob, which is known to be right, by a stream that ends when the work does."""

        def opened() -> BinaryIO:
            return cast(BinaryIO, Watched(open_blob(), descriptor.size, self._stop, progress))

        with opened() as stream:
            self._target.put(descriptor, stream, reopen=opened)
        with self._mutex:
            self._sent += descriptor.size

    def _count(self, count: int) -> None:
        with self._mutex:
            self._done += count

    # -- documents

    def _manifest(
        self,
        config: bytes,
        blobs: Sequence[known.LayerBlob],
        originals: Sequence[tuple[Descriptor, bytes]],
    ) -> tuple[Descriptor, bytes]:
        """The manifest that the image had if it names just these blobs, else a new one.

        Of layers that were there when it came nobody has looked whether it tells the truth.
        """
        wanted = [(blob.digest, blob.size, blob.compression) for blob in blobs]
        for descriptor, document in originals:
            if list(map(_told, Manifest.decode(document).layers)) == wanted:
                return descriptor, document
        manifest = Manifest(
            config=described(config, mediatypes.OCI_CONFIG),
            layers=[blob.oci_descriptor for blob in blobs],
        )
        document = manifest.encode()
        return described(document, mediatypes.OCI_MANIFEST), document

    def _send_config(self, descriptor: Descriptor, config: bytes) -> None:
        if not self._target.has(descriptor) and not self._nearby(descriptor):
            self._put(descriptor, partial(io.BytesIO, config))


def _told(layer: Descriptor) -> tuple[str, int, str]:
    return layer.digest, layer.size, mediatypes.layer_compression(layer.media_type)


class _Way:
    """How far one layer is, told in bytes of its tar: making its blob is half of the way."""

    def __init__(self, size: int, tell: Callable[[int], None]) -> None:
        self._size = size
        self._tell = tell
        self._at = 0

    def step(self, total: int, *, half: bool = False) -> Callable[[int], None]:
        """What to call with the bytes of a step, ``total`` in all, to the end or to the half."""
        start, end, done = self._at, self._size // 2 if half else self._size, 0

        def advance(count: int) -> None:
            nonlocal done
            done = min(done + count, total)
            self._go(start + (end - start) * done // max(total, 1))

        return advance

    def arrive(self) -> None:
        """All is done, however much of it was left to do."""
        self._go(self._size)

    def _go(self, to: int) -> None:
        if to > self._at:  # what is sent again does not count again
            self._tell(to - self._at)
            self._at = to


def _changed(
    blobs: Sequence[known.LayerBlob], came: dict[DiffId, list[known.LayerBlob]]
) -> tuple[DiffId, ...]:
    """Layers that others made a blob of, and which went out as another one."""
    return tuple(
        blob.diff_id
        for blob in blobs
        if (foreign := [b.digest for b in came[blob.diff_id] if b.recipe is None])
        and blob.digest not in foreign
        and not blob.is_plain
    )
