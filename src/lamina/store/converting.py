"""Images from one driver of a store to another: a load from the store itself.

Each layer's tar is given back as by ``lamina save``, verified, and staged by the new driver,
several side by side; DiffIDs and ChainIDs stay what they are. One transaction lets the new driver
have the image, another one takes it from the old driver. What an interruption leaves of an image
is swept like that of a load; the images before it are not done again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from lamina.drivers.registry import driver_class
from lamina.errors import (
    BlobNotFound,
    DigestMismatch,
    ImageNotFound,
    InvalidArchive,
    InvalidImage,
    LayerBroken,
    LayerNotFound,
    LayerUnsupported,
)
from lamina.oci import mediatypes
from lamina.oci.descriptor import Descriptor
from lamina.oci.digest import chain_ids
from lamina.store.core import Core, set_own_driver
from lamina.store.images import Image, Images
from lamina.store.layers import Layer, Layers, chain
from lamina.store.removal import Doomed, discard, release
from lamina.store.transfer.loading import Loading
from lamina.store.transfer.resolving import Part
from lamina.store.work import Work
from lamina.types import ChainId, DiffId, Digest, LayerId

if TYPE_CHECKING:
    from lamina.oci.content import Named
    from lamina.progress import ProgressCallback
    from lamina.store.database import Transaction

_DAMAGE = (
    LayerBroken,
    LayerNotFound,
    LayerUnsupported,
    DigestMismatch,
    InvalidArchive,
    InvalidImage,
    BlobNotFound,
)
"""What makes an image stay where it is, and the others go on."""


@dataclass(frozen=True, slots=True)
class NotConverted:
    """An image that stays with its driver, or whose old layers do. ``image``: a name or id."""

    image: str
    what: str

    def __str__(self) -> str:
        return f"image {self.image}: {self.what}"


@dataclass(slots=True)
class Converted:
    """What came of it."""

    images: int = 0
    """Images that the new driver has now and had not."""
    layers: int = 0
    size: int = 0
    """Bytes of the tars of these layers."""
    removed: int = 0
    """Layers that the old driver has no more."""
    faults: list[NotConverted] = field(default_factory=list)
    """Images that could not be converted: the old driver has them as before."""
    used: list[NotConverted] = field(default_factory=list)
    """Images whose old layers stay, since containers stand on them."""
    is_default: bool = False
    """Whether the store is opened with the new driver from now on."""


class Conversion:
    """Some images, by default all, on their way to the driver ``target``; nothing is done yet.

    Raises:
        InvalidName: there is no such driver.
        DriverUnsupported: it does not work here.
        ImageNotFound, AmbiguousName: about ``refs``.
    """

    def __init__(self, core: Core, target: str, refs: Sequence[str] = (), *, keep: bool) -> None:
        driver_class(target).probe(core.root / target)
        self.target = target
        self.keep = keep
        self._core = core
        self._new = core.on(target)
        self._layers = Layers(core)
        images = Images(core)
        chosen = [images.get(ref) for ref in refs] if refs else list(images)
        self._images = list(dict.fromkeys(chosen))
        self.images = [image for image in self._images if target not in self._tops(image)]
        """Those that the target does not have yet."""
        self.layers = self._missing()
        """The layers that it lacks, each once, as the drivers have them that have them."""

    @property
    def size(self) -> int:
        """Bytes of the tars of :attr:`layers`, as far as they are known."""
        return sum(layer.tar_size or layer.size or 0 for layer in self.layers)

    @property
    def available(self) -> int:
        """Bytes that are free where the store is."""
        free = os.statvfs(self._core.root)
        return free.f_bavail * free.f_frsize

    def run(self, progress: ProgressCallback | None = None) -> Converted:
        """Do it. Damage that is found is in the result's ``faults``.

        Raises OSError where the disk is full, or the like; what is finished stays, and another
        conversion goes on from there.
        """
        result = Converted()
        for image in self._images:
            try:
                self._convert(image, result, progress or self._core.progress)
            except ImageNotFound:
                continue  # removed meanwhile
            except _DAMAGE as error:
                notes = getattr(error, "__notes__", [])
                result.faults.append(NotConverted(_name(image), "; ".join([str(error), *notes])))
                continue
            if not self.keep:
                self._let_go(image, result)
        if not self.keep:
            result.is_default = self._make_default()
        return result

    # -- one image

    def _convert(self, image: Image, result: Converted, progress: ProgressCallback | None) -> None:
        if self.target in self._tops(image):
            return
        held = self._held(image)
        with Work(self._core, resumed=True) as work:
            parts = [self._part(layer) for layer in held]
            before = self._count()
            loading = Loading(
                self._new, _OwnLayers(self._layers, held), progress=progress, remember_blobs=False
            )
            top = loading.bring(parts, work, f"converting {_name(image)}")
            with self._core.db.write(durable=self._core.durable) as tx:
                if not tx.value("SELECT 1 FROM images WHERE id = ?", (image.id,)):
                    raise ImageNotFound(image.id)
                tx.run(
                    "INSERT OR REPLACE INTO image_layers VALUES (?, ?, ?)",
                    (image.id, self.target, None if top is None else top.id),
                )
        result.images += 1
        layers, size = (now - then for now, then in zip(self._count(), before, strict=True))
        result.layers += layers
        result.size += size

    def _held(self, image: Image) -> list[Layer]:
        """The image's layers as a driver has them that has all of them, bottom first."""
        tops = self._tops(image)
        if not tops:
            raise ImageNotFound(image.id)
        driver = self._core.driver_name if self._core.driver_name in tops else min(tops)
        held = self._layers.chain(tops[driver])
        if [layer.chain_id for layer in held] != chain_ids(image.diff_ids):
            raise InvalidImage("its layers are not those that its configuration names")
        return held

    def _part(self, layer: Layer) -> Part:
        assert layer.diff_id is not None
        assert layer.chain_id is not None
        size = self._tar_size(layer)
        descriptor = Descriptor(
            media_type=mediatypes.OCI_LAYER, digest=Digest(layer.diff_id), size=size
        )
        return Part(descriptor, layer.diff_id, layer.chain_id)

    def _tar_size(self, layer: Layer) -> int:
        """Read through where it was not measured (an adoption that verified nothing)."""
        if layer.tar_size is not None:
            return layer.tar_size
        size = 0
        with self._layers.tar(layer) as tar:
            while data := tar.read(1 << 20):
                size += len(data)
        with self._core.db.write() as tx:
            tx.run("UPDATE layers SET tar_size = ? WHERE id = ?", (size, layer.id))
        return size

    def _let_go(self, image: Image, result: Converted) -> None:
        """Take the image away from the other drivers, but for what containers stand on."""
        name, doomed = _name(image), list[Doomed]()
        with self._core.db.write(durable=self._core.durable) as tx:
            for driver, top in _tops(tx, image).items():
                if driver == self.target:
                    continue
                box = tx.value(
                    "SELECT name FROM containers WHERE image = ? AND driver = ?", (image.id, driver)
                )
                if box is not None:
                    what = f"its layers stay with driver {driver} too: container {box} stands on it"
                    result.used.append(NotConverted(name, what))
                    continue
                tx.run(
                    "DELETE FROM image_layers WHERE image = ? AND driver = ?", (image.id, driver)
                )
                doomed += release(tx, top, self._core.leases.token)
        discard(self._core, doomed)
        result.removed += sum(1 for _, driver in doomed if driver)

    # -- the store

    def _make_default(self) -> bool:
        """Let the store be opened with the target if that has all images."""
        with self._core.db.write(durable=self._core.durable) as tx:
            elsewhere = tx.value(
                "SELECT 1 FROM images WHERE NOT EXISTS"
                " (SELECT 1 FROM image_layers WHERE image = images.id AND driver = ?)",
                (self.target,),
            )
            if elsewhere:
                return False
            set_own_driver(tx, self.target)
        return True

    def _missing(self) -> list[Layer]:
        found: dict[ChainId | None, Layer] = {}
        new = Layers(self._new)
        for image in self.images:
            with self._core.db.read() as tx:
                held = chain(tx, next(iter(_tops(tx, image).values()), None))
            for layer in held:
                if layer.chain_id is not None and new.find(layer.chain_id) is None:
                    found.setdefault(layer.chain_id, layer)
        return list(found.values())

    def _tops(self, image: Image) -> dict[str, LayerId | None]:
        with self._core.db.read() as tx:
            return _tops(tx, image)

    def _count(self) -> tuple[int, int]:
        """Layers of the target, and bytes of their tars."""
        with self._core.db.read() as tx:
            row = tx.row(
                "SELECT count(*), coalesce(sum(tar_size), 0) FROM layers"
                " WHERE driver = ? AND kind = 'image'",
                (self.target,),
            )
        assert row is not None
        return row[0], row[1]


class _OwnLayers:
    """A source of the tars of some layers (:class:`lamina.oci.content.Source`)."""

    description = "this store"

    def __init__(self, layers: Layers, held: Sequence[Layer]) -> None:
        self._layers = layers
        self._held: dict[DiffId | None, Layer] = {layer.diff_id: layer for layer in held}

    def images(self) -> Sequence[Named]:
        """None by a manifest."""
        return ()

    def resolve(self, name: str | None) -> Descriptor:
        """None by a manifest."""
        raise ImageNotFound(name or "")

    def open(self, descriptor: Descriptor, offset: int = 0) -> BinaryIO:
        """A tar, not verified, from its start."""
        layer = self._held.get(DiffId(descriptor.digest))
        if layer is None or offset:
            raise BlobNotFound(descriptor.digest, self.description)
        return self._layers.unverified_tar(layer)

    def close(self) -> None:
        """Nothing to be done."""


def _tops(tx: Transaction, image: Image) -> dict[str, LayerId | None]:
    rows = tx.rows("SELECT driver, layer FROM image_layers WHERE image = ?", (image.id,))
    return {row[0]: row[1] for row in rows}


def _name(image: Image) -> str:
    return next(iter(image.names), image.short_id)
