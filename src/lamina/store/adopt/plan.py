"""What there is to bring over from a Docker root, and whether there is room for it."""

from __future__ import annotations

import enum
import tempfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lamina.drivers.registry import driver_class
from lamina.errors import OptionUnsupported
from lamina.kernel.copy import reflink
from lamina.oci import normalize
from lamina.oci.docker import ContainerRecord, Fault, FaultKind, ImageRecord, LayerRecord
from lamina.progress import ProgressCallback
from lamina.store.adopt import room
from lamina.store.adopt.choosing import choose
from lamina.store.adopt.leaving import LeftOut, called
from lamina.store.adopt.room import Room
from lamina.store.adopt.source import DockerSource
from lamina.store.core import Core
from lamina.types import ChainId

if TYPE_CHECKING:
    from lamina.store.adopt.bringing import Adopted

_BLOCK = 4096
_A_LAYER = 8 * _BLOCK
"""What a layer takes besides what is in it: its directories, its tar-split record."""


class Way(enum.Enum):
    """How files come into the store."""

    LINK = "link"
    """Hard links where they can be had, of what is never written to; else as COPY."""
    COPY = "copy"
    """Blocks shared where the file system can; else copies."""
    IN_PLACE = "in place"
    """Not at all: image layers and containers' layers are read where they lie (driver aufs)."""


class Adoption:
    """Images and containers of a Docker root that are to come into a store.

    Nothing is done before :meth:`run`. What the store has already is left out, so that an adoption
    that was interrupted is continued by another one.

    Args:
        names: names or ids of images and containers; all if there are none.
        verify: whether each layer is to give back its tar before it is recorded.

    Raises:
        InvalidName: nothing in the source is called that.
        OptionUnsupported: in place is for driver aufs only.
        StoreError: the store lies in the source, or the source in the store.
    """

    def __init__(
        self,
        core: Core,
        source: DockerSource,
        names: Sequence[str] = (),
        *,
        way: Way = Way.LINK,
        verify: bool = True,
    ) -> None:
        source.check_apart(core.root)
        if way is Way.IN_PLACE and core.driver_name != "aufs":
            raise OptionUnsupported(
                f"driver {core.driver_name} can't read AUFS layers in place: use --driver aufs"
            )
        if way is Way.IN_PLACE and source.idmap:
            raise OptionUnsupported(
                f"the files in {source.path} have owners of a user namespace: "
                "they can't be read in place"
            )
        self.core = core
        self.source = source
        self.way = way
        self.verify = verify
        self.faults: list[Fault] = source.faults
        self.left_out = LeftOut()
        """Of what was asked for, what is seen to be damaged beforehand."""
        if not names:
            self.left_out.add_lost(source.catalog)
        self._bad = {fault.id for fault in self.faults}
        self.images_here = 0
        """Images that the store has, with its driver and under all their names."""
        self.containers_here: dict[str, int] = {}
        """How many of the containers the store has, by the driver that keeps them there."""
        wanted_images, wanted_boxes = choose(source, names)
        self.containers = [box for box in wanted_boxes if self._is_new_container(box)]
        self.images = [image for image in wanted_images if self._is_new_image(image)]
        self._add_images_of(wanted_boxes)
        self.layers = self._missing_layers()
        self.by_tar = bool(source.idmap) or driver_class(core.driver_name).keeps_tars
        can_link = way is Way.LINK and core.driver_name != "vfs" and not self.by_tar
        self.linking = can_link and source.can_link(core.root)
        can_share = way is not Way.IN_PLACE and not self.linking and not self.by_tar
        self.sharing = can_share and self._can_share()

    # -- what -----------------------------------------------------------------------------

    def _is_new_image(self, image: ImageRecord) -> bool:
        if broken := self._broken(image.chain):
            self._leave_out("image", called(image.id, image.names), broken)
            return False
        here = self.has_image(image)
        self.images_here += here
        return not here

    def has_image(self, image: ImageRecord) -> bool:
        """Whether the store has it under all its names."""
        with self.core.db.read() as tx:
            there = tx.value(
                "SELECT 1 FROM image_layers WHERE image = ? AND driver = ?",
                (image.id, self.core.driver_name),
            )
            return bool(there) and all(
                tx.value("SELECT 1 FROM names WHERE name = ?", (normalize(name),))
                for name in image.names
            )

    def _is_new_container(self, box: ContainerRecord) -> bool:
        broken = self._broken(self.source.catalog.images[box.image].chain)
        if box.name in self._bad or broken:
            self._leave_out("container", box.name, broken)
            return False
        driver = self.keeper(box)
        if driver is not None:
            self.containers_here[driver] = self.containers_here.get(driver, 0) + 1
        return driver is None

    def keeper(self, box: ContainerRecord) -> str | None:
        """The driver that keeps the container, if the store has it: it has each one once."""
        with self.core.db.read() as tx:
            driver: str | None = tx.value("SELECT driver FROM containers WHERE id = ?", (box.id,))
        return driver

    def _broken(self, chain: Iterable[ChainId]) -> ChainId | None:
        """The lowest damaged layer."""
        return next((id for id in chain if id in self._bad), None)

    def _leave_out(self, kind: FaultKind, name: str, layer: ChainId | None) -> None:
        if layer is not None:
            self.faults.append(Fault(kind, name, f"its layer {layer} is damaged", layer))
        self.left_out.add(kind, name)

    def _add_images_of(self, boxes: list[ContainerRecord]) -> None:
        """The images that containers stand on, whatever was asked for."""
        for box in boxes:
            image = self.source.catalog.images[box.image]
            if image not in self.images and box in self.containers and not self.has_image(image):
                self.images.append(image)

    def _missing_layers(self) -> list[LayerRecord]:
        """The layers that the images have and the store has not, each after its parent."""
        catalog = self.source.catalog
        wanted = dict.fromkeys(id for image in self.images for id in image.chain)
        with self.core.db.read() as tx:
            return [
                catalog.layers[id]
                for id in wanted
                if not tx.value(
                    "SELECT 1 FROM layers WHERE driver = ? AND chain_id = ?",
                    (self.core.driver_name, id),
                )
            ]

    @property
    def size(self) -> int:
        """Bytes of the files of all that is to come; those of images as Docker counted them."""
        own = [id for box in self.containers for id in (box.init_id, box.mount_id) if id]
        return sum(layer.size for layer in self.layers) + sum(
            self.source.survey(id).size for id in own
        )

    @property
    def work(self) -> int:
        """Bytes that are read or copied for that, about."""
        return sum(map(self.work_of, self.layers)) + sum(map(self.work_of_box, self.containers))

    def work_of(self, layer: LayerRecord) -> int:
        """Of one layer."""
        return layer.size + 2 * self.copied_with(layer.parent)

    def work_of_box(self, box: ContainerRecord) -> int:
        """Of what a container has besides its image."""
        layers = [id for id in (box.init_id, box.mount_id) if id]
        own = sum(self.source.survey(id).size for id in layers)
        return own + 2 * len(layers) * self.copied_with(box.chain)

    def copied_with(self, parent: ChainId | None) -> int:
        """Bytes that a new layer on ``parent`` begins with, a copy of what is below (vfs).

        The driver copies that once to make the layer, and again to fill it.
        """
        if self.core.driver_name != "vfs":
            return 0
        return sum(layer.size for layer in self.source.catalog.chain(parent))

    # -- room -----------------------------------------------------------------------------

    def need(self) -> Room:
        """What it will take of the store's file system, at most."""
        size = files = 0
        if self.way is Way.IN_PLACE:
            count = len(self.layers) + 3 * len(self.containers)
            return Room(count * _A_LAYER, count * 8)
        for layer in self.layers:
            more = self._need_of(layer.cache_id, self._below(layer.parent), self.linking)
            size, files = size + more.size, files + more.files
        for box in self.containers:
            below = self._below(box.chain)
            for id, linking in ((box.init_id, self.linking), (box.mount_id, False)):
                if id is not None:
                    more = self._need_of(id, below, linking)
                    size, files = size + more.size, files + more.files
                    below = [id, *below]
        return Room(size, files)

    def _below(self, chain: ChainId | None) -> list[str]:
        return [layer.cache_id for layer in self.source.catalog.chain(chain)]

    def _need_of(self, branch: str, below: list[str], linking: bool) -> Room:
        """Of one layer; driver vfs has with each of them all that is below."""
        size, files = _A_LAYER, 8
        for id in (branch, *below) if self.core.driver_name == "vfs" else (branch,):
            found = self.source.glance(id)
            if not linking and not found.hidden:
                found = self.source.survey(id)
            size += found.directories * _BLOCK
            files += found.directories
            if found.hidden or not linking:  # what is hidden by AUFS comes from the layer's tar
                size += 0 if self.sharing and not found.hidden else found.allocated
                files += found.files
        return Room(size, files)

    def available(self) -> Room:
        """What there is."""
        return room.available(self.core.root)

    def check_room(self) -> None:
        """Raise :class:`StoreError` unless there is room for all of it."""
        hint = "another place for the store (--root) may have more"
        if self.way is Way.LINK and not self.linking and not self.by_tar:
            hint += ", and on the Docker root's file system files are linked"
        room.check(self.core.root, self.need(), self.available(), hint)

    # -- how ------------------------------------------------------------------------------

    def _can_share(self) -> bool:
        """Whether blocks can be shared, tried with a file of Docker's."""
        try:
            with (
                tempfile.TemporaryFile(dir=self.core.root / "staging") as target,
                self.source.files.open("image/aufs/repositories.json") as some,
            ):
                return reflink(some.fileno(), target.fileno())
        except OSError:
            return False

    # -- doing ----------------------------------------------------------------------------

    def run(self, progress: ProgressCallback | None = None) -> Adopted:
        """Bring it all over. See :class:`lamina.store.adopt.bringing.Bringing`."""
        from lamina.store.adopt.bringing import Bringing

        self.check_room()
        return Bringing(self, progress or self.core.progress).run()
