"""Bringing images and containers of a Docker root into a store.

An image is there when all its layers are and its configuration is recorded; a container with one
transaction. What an interruption leaves half-made is swept like that of any other work, and what
was finished, layer by layer, is not done again.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from lamina.archive.stream import open_chunks
from lamina.drivers import Driver
from lamina.errors import (
    DigestMismatch,
    InvalidArchive,
    InvalidName,
    LayerBroken,
    NameInUse,
    UnmappedId,
)
from lamina.oci import normalize
from lamina.oci.docker import ContainerRecord, Fault, FaultKind, ImageRecord, LayerRecord
from lamina.progress import ProgressCallback
from lamina.store.adopt import verifying
from lamina.store.adopt.labels import labels
from lamina.store.adopt.leaving import LeftOut, called
from lamina.store.adopt.meter import Meter
from lamina.store.adopt.plan import Adoption, Way
from lamina.store.adopt.verifier import Verifier
from lamina.store.database import Transaction
from lamina.store.images import Images
from lamina.store.layers import Layer, Layers
from lamina.store.making import Making, making
from lamina.store.records import Record, free_name, insert
from lamina.store.work import Work
from lamina.types import ChainId, LayerId

if TYPE_CHECKING:
    import datetime

_Make: TypeAlias = Callable[[Driver, LayerId], None]

_DAMAGE = (LayerBroken, DigestMismatch, InvalidArchive, UnmappedId)
"""What makes a layer stay out, and no more than what stands on it."""


@dataclass(slots=True)
class Adopted:
    """What came of it."""

    images: int = 0
    containers: int = 0
    layers: int = 0
    size: int = 0
    """Bytes of the files that came, however they came."""
    faults: list[Fault] = field(default_factory=list)
    """What is damaged, and what is different from what it was."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """What did not come for that."""


class Bringing:
    """One run of an :class:`Adoption`."""

    def __init__(self, plan: Adoption, progress: ProgressCallback | None) -> None:
        self._plan = plan
        self._core = plan.core
        self._source = plan.source
        self._layers = Layers(plan.core)
        self._images = Images(plan.core)
        self._result = Adopted(faults=list(plan.faults), left_out=copy.deepcopy(plan.left_out))
        self._verifier = Verifier(plan.source.files)
        self._broken: dict[ChainId, str] = {}
        what, total = f"adopting {plan.source.path}", plan.work if progress is not None else 0
        self._meter = Meter(what, total, progress)

    def run(self) -> Adopted:
        """Do it; :attr:`Adopted.faults` says what could not be done.

        Raises OSError when the disk is full, or the like; what is finished stays.
        """
        with self._verifier:
            for image in self._plan.images:
                try:
                    self._bring_image(image)
                except _DAMAGE as error:
                    self._leave_out("image", called(image.id, image.names), image.chain, error)
            for box in self._plan.containers:
                try:
                    self._bring_container(box)
                except _DAMAGE as error:
                    chain = self._source.catalog.images[box.image].chain
                    self._leave_out("container", box.name, chain, error)
        self._meter.finish()
        return self._result

    def _leave_out(
        self, kind: FaultKind, name: str, chain: Sequence[ChainId], error: Exception
    ) -> None:
        broken = next((id for id in chain if id in self._broken), "")
        self._result.faults.append(Fault(kind, name, str(error), broken))
        self._result.left_out.add(kind, name)

    # -- images ---------------------------------------------------------------------------

    def _bring_image(self, image: ImageRecord) -> None:
        with Work(self._core, resumed=True) as work:
            top: Layer | None = None
            for chain_id in image.chain:
                top = self._layer(self._source.catalog.layers[chain_id], top, work)
            self._images.create(image.data, top, self._free_names(image))
        self._result.images += 1

    def _free_names(self, image: ImageRecord) -> list[str]:
        """The image's names, without those that another image of the store has."""
        free = []
        with self._core.db.read() as tx:
            for name in image.names:
                taken = tx.value("SELECT image FROM names WHERE name = ?", (normalize(name),))
                if taken is None or taken == image.id:
                    free.append(name)
                else:
                    what = f"it is image {taken} in this store: this one came without it; "
                    self._fault("name", name, f"{what}'lamina tag {image.id} NAME' gives it one")
        return free

    def _layer(self, record: LayerRecord, below: Layer | None, work: Work) -> Layer:
        """The layer in the store, held by ``work``; brought over if it is not there."""
        if record.chain_id in self._broken:
            raise LayerBroken(record.chain_id, self._broken[record.chain_id])
        known = self._layers.hold(record.chain_id, work)
        if known is not None:
            return known
        try:
            with self._meter.part(self._plan.work_of(record)):
                if self._plan.way is not Way.IN_PLACE and self._goes_by_tar(record):
                    made = self._unpack(record, below, work)
                else:
                    made = self._take(record, below, work)
        except _DAMAGE as error:
            why = self._broken[record.chain_id] = verifying.what_is_wrong(error)
            self._fault("layer", record.chain_id, why)
            raise
        self._result.layers += 1
        return made

    def _goes_by_tar(self, record: LayerRecord) -> bool:
        return self._plan.by_tar or self._source.glance(record.cache_id).hidden

    def _unpack(self, record: LayerRecord, below: Layer | None, work: Work) -> Layer:
        """From the layer's tar: its directory has entries that AUFS hides and the tar does not,
        or other owners."""
        with open_chunks(verifying.tar(self._source.files, record)) as tar:
            layer = self._layers.register(tar, below, work=work, diff_id=record.diff_id)
        self._result.size += layer.size or 0
        return layer

    def _take(self, record: LayerRecord, below: Layer | None, work: Work) -> Layer:
        """From the layer's directory."""
        parent = None if below is None else below.id
        with (
            making(self._core, self._maker(record.cache_id, parent)) as made,
            self._core.leases.path() as split,
        ):
            self._meter.add(self._plan.copied_with(record.parent))
            if self._plan.verify:
                self._verifier.begin(record)
            size = self._fill(made.id, parent, record.cache_id, linking=self._plan.linking)
            with (
                verifying.open_split(self._source.files, record) as source,
                open(split, "xb") as target,
            ):
                shutil.copyfileobj(source, target)
            tar_size = self._verifier.finish() if self._plan.verify else None
            self._core.splits.keep(split, made.id)
            self._core.sync_content()
            layer = Layer(
                id=made.id,
                driver=made.driver,
                kind="image",
                parent=parent,
                diff_id=record.diff_id,
                chain_id=record.chain_id,
                size=size,
                tar_size=tar_size,
                created=time.time(),
            )
            return self._layers.record(made, layer, work)

    # -- containers -----------------------------------------------------------------------

    def _bring_container(self, box: ContainerRecord) -> None:
        if self._plan.keeper(box) is not None:
            return  # by now
        image = self._source.catalog.images[box.image]
        with Work(self._core, resumed=True) as work, ExitStack() as stack:
            floor: LayerId | None = None
            below: Layer | None = None
            for chain_id in image.chain:
                below = self._layer(self._source.catalog.layers[chain_id], below, work)
                floor = below.id
            stack.enter_context(self._meter.part(self._plan.work_of_box(box)))
            begun_with = self._plan.copied_with(box.chain)
            frozen: list[tuple[Making, LayerId | None]] = []
            parent = floor
            branches = [box.init_id] if box.init_id else []
            if self._plan.way is Way.IN_PLACE:
                branches.append(box.mount_id)
            for branch in branches:
                made = stack.enter_context(making(self._core, self._maker(branch, parent)))
                self._meter.add(begun_with)
                self._fill(made.id, parent, branch, linking=self._plan.linking)
                frozen.append((made, parent))
                parent = made.id
            top = stack.enter_context(making(self._core, self._writable(parent)))
            self._meter.add(begun_with)
            if self._plan.way is not Way.IN_PLACE:
                self._fill(top.id, parent, box.mount_id, linking=False)
                self._remark(box)
            self._core.sync_content()
            counted_from = frozen[0][0].id if box.init_id else floor
            with self._core.db.write(durable=self._core.durable) as tx:
                if tx.value("SELECT 1 FROM containers WHERE id = ?", (box.id,)):
                    return  # another adoption was quicker
                for made, under in frozen:
                    made.record(tx, kind="frozen", parent=under)
                top.record(tx, kind="writable", parent=parent)
                self._record(tx, box, top.id, counted_from)
        self._result.containers += 1

    def _writable(self, parent: LayerId | None) -> _Make:
        return lambda driver, new: driver.create_read_write(new, parent)

    def _record(
        self, tx: Transaction, box: ContainerRecord, layer: LayerId, floor: LayerId | None
    ) -> None:
        record = Record(
            id=box.id,
            name=self._free_name(tx, box),
            driver=self._core.driver_name,
            layer=layer,
            floor=floor,
            image=box.image,
            base=None,
            ephemeral=False,
            options={},
            labels=labels(box),
            command=box.command,
            created=_seconds(box.created) or time.time(),
        )
        insert(tx, record)
        if box.finished is not None:
            tx.run(
                "UPDATE containers SET started = ?, finished = ?, exit_code = ? WHERE id = ?",
                (_seconds(box.started), _seconds(box.finished), box.exit_code, box.id),
            )

    def _free_name(self, tx: Transaction, box: ContainerRecord) -> str:
        try:
            return free_name(tx, box.name)
        except (NameInUse, InvalidName):
            name = free_name(tx, f"docker-{box.id[:12]}")
            self._fault("container", box.name, f"the name can't be had here: it is {name} now")
            return name

    def _remark(self, box: ContainerRecord) -> None:
        """Say what of the container's own layer is not as it was."""
        for path, why in self._source.survey(box.mount_id).odd:
            self._fault("container", box.name, f"{path.decode(errors='backslashreplace')}: {why}")

    # -- both -----------------------------------------------------------------------------

    def _maker(self, branch: str, parent: LayerId | None) -> _Make:
        if self._plan.way is not Way.IN_PLACE:
            return lambda driver, new: driver.create(new, parent)
        options: Mapping[str, str] = {"branch": str(self._source.path / "aufs/diff" / branch)}
        return lambda driver, new: driver.create(new, parent, options=options)

    def _fill(self, id: LayerId, parent: LayerId | None, branch: str, *, linking: bool) -> int:
        """Fill a new layer; bytes of its files."""
        if self._plan.way is Way.IN_PLACE:
            size = self._source.survey(branch).size
        else:
            layer = self._source.foreign(branch, links=linking)
            size = self._core.driver.copy_in(id, parent, layer, progress=self._meter.add)
        self._result.size += size
        return size

    def _fault(self, kind: FaultKind, id: str, what: object) -> None:
        self._result.faults.append(Fault(kind, id, str(what)))


def _seconds(moment: datetime.datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
