"""Everything that a Docker root has in its files: what is there, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import msgspec

from lamina.errors import InvalidName, LaminaError
from lamina.oci.config import ImageConfig
from lamina.oci.digest import chain_ids, hex_of, next_chain_id, sha256
from lamina.oci.docker import documents
from lamina.oci.docker.files import Files
from lamina.oci.docker.records import (
    ContainerRecord,
    Fault,
    FaultKind,
    ImageRecord,
    LayerRecord,
    layer_directory,
)
from lamina.oci.reference import normalize
from lamina.types import ChainId, DiffId, Digest

_HEX = re.compile(r"[0-9a-f]{64}")
BRANCH = re.compile(r"[0-9a-f]{64}(?:-init)?")

_UNREADABLE = (OSError, ValueError, LaminaError, msgspec.MsgspecError)
"""What reading one of Docker's documents may raise, whatever is in it."""


@dataclass(slots=True)
class Catalog:
    """Layers by chain id, images by id, containers by id, and what is wrong.

    Every layer's parent, every image's layers and every container's image layers are there.
    """

    layers: dict[ChainId, LayerRecord] = field(default_factory=dict)
    images: dict[Digest, ImageRecord] = field(default_factory=dict)
    containers: dict[str, ContainerRecord] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    lost: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names, perhaps none, of the images that are not there, by id."""
    lost_containers: set[str] = field(default_factory=set)
    """Ids of the containers of AUFS's that are not there."""
    others: dict[str, str] = field(default_factory=dict)
    """Storage drivers of the containers that belong to another one, by the containers' ids."""

    def chain(self, top: ChainId | None) -> list[LayerRecord]:
        """A layer and all below it, the top last."""
        found: list[LayerRecord] = []
        while top is not None:
            found.append(self.layers[top])
            top = found[-1].parent
        return found[::-1]

    def shown(self) -> list[ImageRecord]:
        """The images that ``docker images`` shows: with a name, or with nothing built on them.

        Those of fewer layers come first, so that what others stand on does.
        """
        built_on = {image.parent for image in self.images.values()}
        shown = [image for image in self.images.values() if image.names or image.id not in built_on]
        return sorted(shown, key=lambda image: (len(image.chain), image.names, image.id))

    def fault(self, kind: FaultKind, id: str, what: object, cause: str = "") -> None:
        """Note that something is wrong."""
        text = what.strerror or str(what) if isinstance(what, OSError) else str(what)
        if isinstance(what, _Follows):
            cause = what.cause
        self.faults.append(Fault(kind, id, text, cause))


def read_catalog(files: Files) -> Catalog:
    """Read it all. Raises OSError only where not even the directories can be read."""
    catalog = Catalog()
    _read_layers(files, catalog)
    _read_images(files, catalog)
    _read_names(files, catalog)
    _read_containers(files, catalog)
    return catalog


# -- layers -----------------------------------------------------------------------------


def _read_layers(files: Files, catalog: Catalog) -> None:
    found: dict[ChainId, LayerRecord] = {}
    for name in files.names("image/aufs/layerdb/sha256"):
        try:
            layer = _layer(files, name)
        except FileNotFoundError as error:
            catalog.fault("layer", name, f"{str(error.filename).rpartition('/')[2]} is missing")
        except _UNREADABLE as error:
            catalog.fault("layer", name, error)
        else:
            found[layer.chain_id] = layer
    for layer in found.values():
        if layer.parent is not None and layer.parent not in found:
            what = f"its parent {layer.parent} is missing"
            catalog.fault("layer", layer.chain_id, what, layer.parent)
    # A chain id covers those below it, so that no checked chain can go round in a circle.
    catalog.layers = {id: layer for id, layer in found.items() if _complete(layer, found)}


def _layer(files: Files, name: str) -> LayerRecord:
    if not _HEX.fullmatch(name):
        raise ValueError("its directory is not called by a sha256")
    chain_id = ChainId(f"sha256:{name}")
    at = layer_directory(chain_id)
    if not files.is_directory(at):
        raise ValueError("its directory is none")
    diff_id = DiffId(files.text(f"{at}/diff"))
    hex_of(diff_id)
    try:
        parent = ChainId(files.text(f"{at}/parent"))
    except FileNotFoundError:
        parent = None
    if next_chain_id(parent, diff_id) != chain_id:
        raise ValueError("its parent and DiffID do not give its ChainID")
    cache_id = files.text(f"{at}/cache-id")
    if not _HEX.fullmatch(cache_id):
        raise ValueError("its cache-id is not an id")
    size = int(files.text(f"{at}/size"))
    if not 0 <= size < 1 << 63:
        raise ValueError("its size is none")
    return LayerRecord(chain_id, diff_id, parent, cache_id, size)


def _complete(layer: LayerRecord, found: dict[ChainId, LayerRecord]) -> bool:
    at: LayerRecord | None = layer
    while at is not None:
        if at.parent is None:
            return True
        at = found.get(at.parent)
    return False


# -- images -----------------------------------------------------------------------------


def _read_images(files: Files, catalog: Catalog) -> None:
    for name in files.names("image/aufs/imagedb/content/sha256"):
        try:
            image = _image(files, name)
        except _UNREADABLE as error:
            catalog.fault("image", name, error)
            catalog.lost[f"sha256:{name}"] = ()
            continue
        missing = [chain for chain in image.chain if chain not in catalog.layers]
        if missing:
            what = f"its layer {missing[0]} is missing or damaged"
            catalog.fault("image", image.id, what, missing[0])
            catalog.lost[image.id] = ()
        else:
            catalog.images[image.id] = image


def _image(files: Files, name: str) -> ImageRecord:
    data = files.read(f"image/aufs/imagedb/content/sha256/{name}")
    id = sha256(data)
    if id != f"sha256:{name}":
        raise ValueError(f"its configuration is damaged: the digest is {id}")
    config = ImageConfig.decode(data)
    for diff_id in config.rootfs.diff_ids:
        hex_of(diff_id)
    parent = None
    try:
        parent = Digest(files.text(f"image/aufs/imagedb/metadata/sha256/{name}/parent"))
    except FileNotFoundError:
        pass
    return ImageRecord(id, data, config, tuple(chain_ids(config.rootfs.diff_ids)), parent=parent)


def _read_names(files: Files, catalog: Catalog) -> None:
    try:
        data = files.read("image/aufs/repositories.json")
        repositories = msgspec.json.decode(data, type=documents.Repositories).Repositories
    except _UNREADABLE as error:
        catalog.fault("name", "repositories.json", error)
        return
    names: dict[Digest, list[str]] = {}
    for repository in repositories.values():
        for name, id in repository.items():
            if "@" in name:
                continue  # what a registry called it: a digest, no name
            try:
                normalize(name)
            except InvalidName as error:
                catalog.fault("name", name, error)
                continue
            if id not in catalog.images:
                catalog.fault("name", name, f"its image {id} is missing or damaged", id)
                catalog.lost[id] = (*catalog.lost.get(id, ()), name)
            names.setdefault(Digest(id), []).append(name)
    for id, image in catalog.images.items():
        if id in names:
            catalog.images[id] = replace(image, names=tuple(sorted(names[id])))


# -- containers -------------------------------------------------------------------------


def _read_containers(files: Files, catalog: Catalog) -> None:
    for name in files.names("containers"):
        try:
            catalog.containers[name] = _container(files, name, catalog)
        except _OfAnother as error:
            catalog.others[name] = error.driver
            catalog.fault("container", name, error)
        except FileNotFoundError as error:
            catalog.fault("container", name, f"{error.filename} is missing")
            catalog.lost_containers.add(name)
        except _UNREADABLE as error:
            catalog.fault("container", name, error)
            catalog.lost_containers.add(name)


class _Follows(ValueError):
    def __init__(self, what: str, cause: str) -> None:
        super().__init__(what)
        self.cause = cause


class _OfAnother(ValueError):
    def __init__(self, driver: str) -> None:
        super().__init__(f"it belongs to Docker's storage driver {driver}")
        self.driver = driver


def _container(files: Files, id: str, catalog: Catalog) -> ContainerRecord:
    if not _HEX.fullmatch(id):
        raise ValueError("its directory is not called by an id")
    at = f"containers/{id}"
    if not files.is_directory(at):
        raise ValueError("its directory is none")
    known = msgspec.json.decode(files.read(f"{at}/config.v2.json"), type=documents.Container)
    if known.driver not in ("aufs", ""):
        raise _OfAnother(known.driver)
    mount_id, init_id, chain = _mount(files, id)
    if known.image not in catalog.images:
        raise _Follows(f"its image {known.image} is missing or damaged", known.image)
    if chain is not None and chain not in catalog.layers:
        raise _Follows(f"its layer {chain} is missing or damaged", chain)
    if (chain,) != (catalog.images[Digest(known.image)].chain[-1:] or (None,)):
        raise ValueError(f"it does not stand on the layers of its image {known.image}")
    config, state = known.config, known.state
    return ContainerRecord(
        id=id,
        name=known.name.removeprefix("/") or id[:12],
        image=Digest(known.image),
        chain=chain,
        mount_id=mount_id,
        init_id=init_id,
        command=known.command(),
        env=known.environment(),
        user=config.user,
        working_dir=config.working_dir,
        hostname=config.hostname,
        network=_network(files, at),
        labels=config.labels or {},
        volumes=known.volumes(),
        created=documents.moment(known.created),
        started=documents.moment(state.started_at),
        finished=documents.moment(state.finished_at),
        exit_code=state.exit_code,
    )


def _mount(files: Files, container: str) -> tuple[str, str | None, ChainId | None]:
    """The storage driver's names of a container's two layers, and the image's top layer."""
    at = f"image/aufs/layerdb/mounts/{container}"
    found = dict(_words(files, at, "mount-id", "init-id", "parent"))
    mount_id, init_id = found.get("mount-id"), found.get("init-id")
    if mount_id is None:
        raise ValueError("its mount-id is missing")
    for id in (mount_id, init_id):
        if id is not None and not BRANCH.fullmatch(id):
            raise ValueError("its mount-id or init-id is not an id")
    parent = found.get("parent")
    return mount_id, init_id, None if parent is None else ChainId(parent)


def _words(files: Files, at: str, *names: str) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, files.text(f"{at}/{name}")
        except FileNotFoundError:
            pass


def _network(files: Files, at: str) -> str:
    try:
        data = files.read(f"{at}/hostconfig.json")
        return msgspec.json.decode(data, type=documents.HostConfig).network_mode
    except _UNREADABLE:
        return ""
