"""An image from a source into the store: fetched and unpacked side by side, recorded in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lamina.errors import StoreError
from lamina.oci import mediatypes
from lamina.oci import platform as platforms
from lamina.oci.copying import check_config
from lamina.oci.digest import hex_of
from lamina.oci.platform import Spec
from lamina.store.core import Core
from lamina.store.images import Image, Images, point
from lamina.store.layers import Layer, Layers
from lamina.store.making import Making, making
from lamina.store.transfer import known
from lamina.store.transfer.keeping import keep_blobs
from lamina.store.transfer.preparing import prepare, prepared
from lamina.store.transfer.resolving import Part, resolve
from lamina.store.transfer.stopping import Stop, locked
from lamina.store.work import Work
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.oci.content import Source
    from lamina.oci.descriptor import Descriptor
    from lamina.progress import ProgressCallback
    from lamina.store.transfer.staging import Arrival

_TRIES = 5


class _Overtaken(Exception):
    """Another process has recorded one of our layers meanwhile."""


class Loading:
    """Brings images of one source into a store.

    Args:
        source: where from.
        fetch: it is far away: blobs come into files first, and an interrupted transfer goes on
            where it was.
        keep_blobs: keep the blobs of layers as they came, so that the image goes out with the
            same digests.
        remember_blobs: note which blobs the layers came as; not where the source made them up.
        platform: which image of an index, by default this machine's. An image that is in no
            index has to be for this platform, if one is given.
        abort: called when the work is to end before its time: lets what waits for the source
            in other threads wait no longer.
    """

    def __init__(
        self,
        core: Core,
        source: Source,
        *,
        fetch: bool = False,
        keep_blobs: bool = False,
        remember_blobs: bool = True,
        platform: Spec | None = None,
        progress: ProgressCallback | None = None,
        abort: Callable[[], None] = lambda: None,
    ) -> None:
        self._core = core
        self._source = source
        self._fetch = fetch or keep_blobs
        self._keep_blobs = keep_blobs
        self._remember_blobs = remember_blobs
        self._platform = platform or platforms.this_machine()
        self._strict = platform is not None
        self._progress = progress
        self._abort = abort
        self._layers = Layers(core)
        self._images = Images(core)

    def load(self, descriptor: Descriptor, names: Sequence[str], what: str) -> Image:
        """The image that ``descriptor`` names in the source; it gets ``names``.

        An image whose digest came to one in the store before is not read again.

        Raises:
            PlatformNotFound, BlobNotFound: what is asked for is not in the source.
            InvalidImage, InvalidArchive, DigestMismatch: something is not what it was said to be.
            RegistryError, OSError: it can't be read, or the disk is full.
            Nothing of it is in the store then.
        """
        image = self._known(descriptor, names)
        if image is not None:
            return image
        found = resolve(self._source, descriptor, self._platform, strict=self._strict)
        with self._core.writing(), Work(self._core) as work:
            top = self.bring(found.parts, work, what)
            if self._keep_blobs:
                keep_blobs(self._core, self._source, found.parts)
            image = self._images.create(found.config, top, names)
            with self._core.db.write(durable=self._core.durable) as tx:
                known.remember_manifest(tx, image.id, found.manifest, found.document)
                for digest in {descriptor.digest, found.manifest.digest}:
                    known.remember_resolved(tx, digest, str(self._platform), image.id)
        return image

    def _known(self, descriptor: Descriptor, names: Sequence[str]) -> Image | None:
        """The image that was made of this very descriptor, if this store's driver has it."""
        if self._keep_blobs:
            return None
        with self._core.db.write(durable=self._core.durable) as tx:
            id = known.resolved(tx, descriptor.digest, str(self._platform))
            if id is None or not tx.value(
                "SELECT 1 FROM image_layers WHERE image = ? AND driver = ?",
                (id, self._core.driver_name),
            ):
                return None
            image = Image(self._core, id)
            if self._strict and descriptor.media_type not in mediatypes.INDEXES:
                check_config(image.config, self._platform)  # it may have come without a question
            for name in names:
                point(tx, name, id)
        return image

    # -- layers

    def bring(self, parts: Sequence[Part], work: Work, what: str) -> Layer | None:
        """Have all layers of an image, bottom first, in the store, held by ``work``.

        Returns the topmost. Raises as :meth:`load`.
        """
        for _ in range(_TRIES):
            held = self._hold(parts, work)
            missing = parts[len(held) :]
            if not missing:
                if held:
                    prepare(self._core.driver, held[-1].id)
                return held[-1] if held else None
            below = held[-1].id if held else None
            try:
                # Two that miss a layer on the same chain miss the same one first.
                with locked(self._lock(missing[0]), Stop()):
                    if len(self._hold(parts, work)) > len(held):
                        continue  # another process was at it while we waited
                    return self._bring_missing(missing, below, work, what)
            except _Overtaken:
                continue
        raise StoreError(f"{what}: other processes kept adding and removing the same layers")

    def _hold(self, parts: Sequence[Part], work: Work) -> list[Layer]:
        """The layers that the store has, from the bottom on; they stay while the work goes on."""
        held = []
        for part in parts:
            layer = self._layers.hold(part.chain_id, work)
            if layer is None:
                break
            held.append(layer)
        return held

    def _lock(self, part: Part) -> str:
        directory = self._core.run / "layers"
        directory.mkdir(mode=0o700, exist_ok=True)
        return f"{directory}/{hex_of(part.chain_id)}.lock"

    def _bring_missing(
        self, parts: Sequence[Part], below: LayerId | None, work: Work, what: str
    ) -> Layer:
        from lamina.store.transfer.staging import Stager

        stager = Stager(
            self._core,
            self._source,
            parts,
            below,
            fetch=self._fetch,
            what=what,
            progress=self._progress,
            abort=self._abort,
        )
        with stager.run() as arrivals:
            top = self._record(arrivals, below, work)
            if not self._keep_blobs:
                for arrival in arrivals:
                    if arrival.fetched is not None:
                        arrival.fetched.remove()
        return top

    def _record(self, arrivals: Sequence[Arrival], below: LayerId | None, work: Work) -> Layer:
        """Let the layers appear, from the bottom: on disk, synced, then in the tables, at once."""
        core = self._core
        layers: list[tuple[Making, Layer]] = []
        with ExitStack() as stack:
            for arrival in arrivals:
                made = stack.enter_context(_created(core, below))
                core.driver.place(made.id, below, arrival.staged)
                core.splits.keep(arrival.split, made.id)
                layers.append((made, _layer(arrival, made, below)))
                below = made.id
            stack.enter_context(prepared(core, layers[-1][1].id))
            core.sync_content()
            with core.db.write(durable=core.durable) as tx:
                for (made, layer), arrival in zip(layers, arrivals, strict=True):
                    if tx.value(
                        "SELECT 1 FROM layers WHERE driver = ? AND chain_id = ?",
                        (layer.driver, layer.chain_id),
                    ):
                        raise _Overtaken
                    made.record(tx, **layer._asdict())
                    work.hold(tx, layer.id)
                    if self._remember_blobs:
                        known.remember_blob(tx, known.of_part(arrival.part))
        return layers[-1][1]


@contextmanager
def _created(core: Core, below: LayerId | None) -> Iterator[Making]:
    """A new layer on ``below``, as :func:`making`."""
    with making(core, lambda driver, new: driver.create(new, below)) as made:
        yield made


def _layer(arrival: Arrival, made: Making, below: LayerId | None) -> Layer:
    return Layer(
        id=made.id,
        driver=made.driver,
        kind="image",
        parent=below,
        diff_id=arrival.part.diff_id,
        chain_id=arrival.part.chain_id,
        size=arrival.staged.unpacked.size,
        tar_size=arrival.tar_size,
        created=time.time(),
    )
