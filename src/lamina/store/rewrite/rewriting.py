"""Making the new tree, and putting it in its place."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec

from lamina.archive import whiteout
from lamina.archive.copytree import copy_tree
from lamina.archive.stream import open_chunks
from lamina.archive.transplant import transplant
from lamina.archive.unpack import unpack
from lamina.drivers.dockeroverlay import DockerOverlay
from lamina.errors import (
    DigestMismatch,
    InvalidArchive,
    LayerBroken,
    StoreError,
)
from lamina.kernel.remove import remove_tree
from lamina.oci.docker import ContainerRecord, Fault, ImageRecord, LayerRecord
from lamina.oci.docker.records import layer_directory
from lamina.progress import ProgressCallback
from lamina.store.adopt import room, verifying
from lamina.store.adopt.leaving import LeftOut, left_out
from lamina.store.adopt.meter import Meter
from lamina.store.adopt.room import Room
from lamina.store.adopt.source import DockerSource, require_root
from lamina.store.rewrite.place import Before, Place, replace_file
from lamina.types import ChainId

_BLOCK = 4096


@dataclass(slots=True)
class Rewritten:
    """What came of it."""

    layers: int = 0
    images: int = 0
    containers: int = 0
    copied: int = 0
    """Bytes of files that are not shared with the old tree."""
    before: bool = False
    """Whether it had all been done before."""
    faults: list[Fault] = field(default_factory=list)
    """What is damaged."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """What is not in the new tree for that."""


class DamageFound(StoreError):
    """A root that is not rewritten, since what ``faults`` names would be left out."""

    def __init__(self, message: str, faults: list[Fault]) -> None:
        super().__init__(message)
        self.faults = faults


def remaining_faults(source: DockerSource) -> list[Fault]:
    """The source's faults without those of containers that a rewriting has brought over."""
    place = Place(source.path)
    return [
        fault
        for fault in source.faults
        if not (fault.kind == "container" and place.is_switched(fault.id))
    ]


class Rewrite:
    """The rewriting of one Docker root, opened ``alone``. Nothing is done before :meth:`run`.

    What is damaged is left out of the new tree, and named in :attr:`faults`; unless
    ``leave_out_damaged`` agrees to that, nothing is put in its place then.

    Raises:
        StoreError: Docker's overlay2 has layers there already.
    """

    def __init__(
        self, source: DockerSource, *, verify: bool = True, leave_out_damaged: bool = False
    ) -> None:
        self._source = source
        self._verify = verify
        self._agreed = leave_out_damaged
        self._place = Place(source.path)
        self.faults = remaining_faults(source)
        self._bad = {fault.id for fault in self.faults}
        if not self._place.is_done:
            self._place.check_free()

    @property
    def is_done(self) -> bool:
        """Whether it was all done before."""
        return self._place.is_done

    @property
    def is_begun(self) -> bool:
        """Whether it was begun before, and goes on."""
        return self._place.is_begun

    # -- what -----------------------------------------------------------------------------

    @property
    def layers(self) -> list[LayerRecord]:
        """Image layers that go over, each after its parent."""
        sound = [layer for layer in self._source.catalog.layers.values() if self._is_sound(layer)]
        return sorted(sound, key=lambda layer: len(self._source.catalog.chain(layer.chain_id)))

    def _is_sound(self, layer: LayerRecord) -> bool:
        chain = self._source.catalog.chain(layer.chain_id)
        return not any(below.chain_id in self._bad for below in chain)

    def _has_sound(self, chain: tuple[ChainId, ...]) -> bool:
        return not any(id in self._bad for id in chain)

    @property
    def images(self) -> list[ImageRecord]:
        """Images that go over, those without names too."""
        images = self._source.catalog.images.values()
        return [image for image in images if self._has_sound(image.chain)]

    @property
    def containers(self) -> list[ContainerRecord]:
        """Containers that go over."""
        return [
            box
            for box in self._source.catalog.containers.values()
            if box.name not in self._bad
            and self._has_sound(self._source.catalog.images[box.image].chain)
        ]

    @property
    def left_out(self) -> LeftOut:
        """What does not go over, as far as is known: layers are verified by :meth:`run`."""
        return left_out(self._source.catalog, self.images, self.containers, self.faults)

    @cached_property
    def _frozen(self) -> set[str]:
        """Branches that nothing writes to: both trees may have the same files."""
        layers = self._source.catalog.layers.values()
        boxes = self._source.catalog.containers.values()
        return {layer.cache_id for layer in layers} | {box.init_id for box in boxes if box.init_id}

    @cached_property
    def _linking(self) -> bool:
        return self._source.can_link(self._source.path)

    def _linked(self, branch: str) -> bool:
        """Whether its files are hard links in the new tree."""
        return self._linking and branch in self._frozen

    def branches(self) -> list[str]:
        """Layers of the storage driver's that go over, parents first; BuildKit's too."""
        bad = self._bad_branches
        whole = self._source.branches.whole()
        return [id for id in whole if not bad.intersection((id, *self._chain(id)))]

    @property
    def _bad_branches(self) -> set[str]:
        layers = self._source.catalog.layers.values()
        return {layer.cache_id for layer in layers if not self._is_sound(layer)}

    def _chain(self, branch: str) -> tuple[str, ...]:
        return self._source.branches.chain(branch) or ()

    # -- room -----------------------------------------------------------------------------

    def need(self) -> int:
        """Bytes that it takes, at most, besides what an interrupted run has made."""
        total = 0
        for id in self.branches():
            if id in self._frozen and (self._place.new_layers / id).exists():
                continue
            total += (self._source.glance(id).directories + 4) * _BLOCK
            if self._source.glance(id).hidden:
                total += self._source.glance(id).allocated
            elif not self._linked(id):
                total += self._source.survey(id).allocated
        return total + 2 * self._size_of_image()

    def _size_of_image(self) -> int:
        top = self._source.reading / "image/aufs"
        return sum(
            os.lstat(os.path.join(directory, name)).st_blocks * 512
            for directory, _, names in os.walk(top)
            for name in names
        )

    def available(self) -> int:
        """Bytes that are free."""
        return room.available(self._source.path).size

    def check_room(self) -> None:
        """Raise :class:`StoreError` unless there is room for it."""
        hint = "make room there, or bring it into a store elsewhere (--bring)"
        room.check(self._source.path, Room(self.need()), Room(self.available()), hint)

    # -- doing ----------------------------------------------------------------------------

    def run(self, progress: ProgressCallback | None = None) -> Rewritten:
        """Do it, or what is left to do.

        Raises:
            PermissionRequired: only root can write what Docker's overlay2 has.
            StoreError: something is damaged, and it was not agreed to leave it out.
            OSError: it can be run again.
        """
        if self._place.is_done:
            return Rewritten(before=True)
        require_root(f"rewriting {self._source.path}")
        result = Rewritten()
        if not self._place.is_committing:
            meter = Meter(f"rewriting {self._source.path}", self._work(), progress)
            if self._verify:
                self._verify_layers(meter)
            self._check_agreed()
            self.check_room()
            self._place.begin()
            self._make_layers(result, meter)
            meter.finish()
            self._check_agreed()
            self._make_image()
        self._place.commit_tree(self._before())
        before = self._place.before
        for id in before.containers:
            self._switch(id)
        result.layers, result.images = len(self.layers), len(self.images)
        result.containers = len(before.containers)
        result.faults, result.left_out = self.faults, before.damaged
        self._place.finish()
        return result

    def _before(self) -> Before:
        catalog = self._source.catalog
        images = sorted({*catalog.images, *catalog.lost})
        return Before(images, [box.id for box in self.containers], self.left_out)

    def _check_agreed(self) -> None:
        """Raise :class:`DamageFound` where something would be left out without agreement."""
        if self.left_out and not self._agreed:
            raise DamageFound(
                f"not rewritten, since this is damaged and would be left out: {self.left_out}",
                self.faults,
            )

    def _work(self) -> int:
        """Bytes that are to be read or copied."""
        verified = sum(layer.size for layer in self.layers) if self._verify else 0
        return verified + sum(map(self._size_of, self.branches()))

    def _size_of(self, branch: str) -> int:
        layer = self._by_branch.get(branch)
        return self._source.survey(branch).size if layer is None else layer.size

    @cached_property
    def _by_branch(self) -> dict[str, LayerRecord]:
        return {layer.cache_id: layer for layer in self._source.catalog.layers.values()}

    def _verify_layers(self, meter: Meter) -> None:
        for layer in self.layers:
            try:
                with meter.part(layer.size):
                    verifying.verify(self._source.files, layer, meter.add)
            except (LayerBroken, DigestMismatch) as error:
                self._leave_out(layer, verifying.what_is_wrong(error))

    def _leave_out(self, layer: LayerRecord, why: str) -> None:
        self.faults.append(Fault("layer", layer.chain_id, why))
        self._bad.add(layer.chain_id)

    # -- layers ---------------------------------------------------------------------------

    def _make_layers(self, result: Rewritten, meter: Meter) -> None:
        home = DockerOverlay(str(self._place.new_layers), self._source.idmap.root)
        branches = self.branches()
        # What an interrupted run made of layers that are written to: they may have been meanwhile.
        home.keep_only(self._frozen.intersection(branches))
        parents = {id for branch in branches for id in self._chain(branch)[:1]}
        for id in branches:
            chain = self._chain(id)
            if home.exists(id) or self._bad_branches.intersection((id, *chain)):
                continue
            layer = self._by_branch.get(id)

            def fill(
                target: str,
                id: str = id,
                chain: tuple[str, ...] = chain,
                layer: LayerRecord | None = layer,
            ) -> None:
                if layer is not None and self._source.glance(id).hidden:
                    self._unpack(layer, target, [home.diff(below) for below in chain])
                else:
                    self._transplant(id, target, result, meter)

            try:
                with meter.part(self._size_of(id)):
                    home.make(id, chain, fill, is_parent=id in parents)
            except InvalidArchive as error:  # a tar of marks that no other driver can have
                assert layer is not None
                self._leave_out(layer, str(error))

    def _transplant(self, branch: str, target: str, result: Rewritten, meter: Meter) -> None:
        linking = self._linked(branch)
        layer = self._source.foreign(branch, links=linking)
        size = transplant(layer, target, whiteout.OVERLAY, progress=meter.add)
        if not linking:
            result.copied += size

    def _unpack(self, layer: LayerRecord, target: str, lowers: list[str]) -> None:
        """From the layer's tar: its directory has entries that AUFS hides and the tar does not."""
        with open_chunks(verifying.tar(self._source.files, layer)) as tar:
            below = [Path(lower) for lower in lowers]
            idmap = self._source.idmap
            unpack(tar, target, fmt=whiteout.OVERLAY, lowers=below, idmap=idmap)

    # -- image/overlay2 -------------------------------------------------------------------

    def _make_image(self) -> None:
        """Copy ``image/aufs`` without what is damaged; layers keep the storage driver's names."""
        new = self._place.new_image
        remove_tree(new)
        for part in ("imagedb/content/sha256", "imagedb/metadata/sha256", "layerdb/sha256",
                     "layerdb/mounts", "layerdb/tmp", "distribution"):  # fmt: skip
            (new / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._copy_if_there("distribution")
        # dockerd does not start on one that it can't read, and makes one where there is none.
        if not any(fault.id == "repositories.json" for fault in self.faults):
            data = self._source.files.read("image/aufs/repositories.json")
            _write(new / "repositories.json", data)
        for image in self.images:
            name = image.id.removeprefix("sha256:")
            _write(new / f"imagedb/content/sha256/{name}", image.data)
            self._copy_if_there(f"imagedb/metadata/sha256/{name}")
        for layer in self.layers:
            self._copy_if_there(layer_directory(layer.chain_id).removeprefix("image/aufs/"))
        for box in self.containers:
            self._copy_if_there(f"layerdb/mounts/{box.id}")

    def _copy_if_there(self, part: str) -> None:
        """Copy a directory of ``image/aufs``; what is a link, here or above, leads nowhere else."""
        try:
            fd = self._source.files.open_directory(f"image/aufs/{part}")
        except OSError:
            return
        try:
            copy_tree(Path(f"/proc/self/fd/{fd}"), self._place.new_image / part)
        finally:
            os.close(fd)

    # -- containers -----------------------------------------------------------------------

    def _switch(self, id: str) -> None:
        """Let a container belong to overlay2; what its configuration was is kept."""
        path = self._source.path / "containers" / id / "config.v2.json"
        if not path.exists():
            return  # removed since an interruption
        data = path.read_bytes()
        config = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        config["Driver"] = msgspec.Raw(b'"overlay2"')
        saved = self._place.saved / id
        saved.mkdir(mode=0o700, exist_ok=True)
        if not (saved / path.name).exists():
            shutil.copy2(path, saved / f"{path.name}.new")
            os.rename(saved / f"{path.name}.new", saved / path.name)
        replace_file(path, msgspec.json.encode(config))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)  # as Docker has it
