"""Images: a configuration over a stack of layers, and the names that point to it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from lamina.errors import (
    AmbiguousName,
    ImageInUse,
    ImageNotFound,
    InvalidName,
    StoreError,
    printable,
)
from lamina.oci.defaults import Defaults
from lamina.oci.reference import Reference, normalize
from lamina.store.core import Core
from lamina.store.database import Transaction
from lamina.store.layers import Layer, chain
from lamina.store.names import is_hex
from lamina.store.removal import Doomed, discard, discard_blob, doom_blob, release
from lamina.types import ChainId, DiffId, Digest, LayerId

if TYPE_CHECKING:
    from lamina.oci import ImageConfig
    from lamina.oci.descriptor import Descriptor
    from lamina.oci.showing import Shown

_FORGET_LOCATIONS = """
DELETE FROM locations WHERE digest IN (
    SELECT digest FROM resolved WHERE image = ?1 UNION SELECT digest FROM manifests WHERE image = ?1
)
"""


class Image:
    """One image. Its id is the digest of its configuration, so that it never changes.

    Names come and go; :attr:`names` asks the store each time.
    """

    def __init__(self, core: Core, id: Digest) -> None:
        self._core = core
        self.id = id

    @property
    def short_id(self) -> str:
        """The first twelve hex digits of the id, as people see it."""
        return self.id.removeprefix("sha256:")[:12]

    @property
    def names(self) -> list[str]:
        """The names that point to it, sorted; none for a dangling image."""
        with self._core.db.read() as tx:
            rows = tx.rows("SELECT name FROM names WHERE image = ? ORDER BY name", (self.id,))
        return [row[0] for row in rows]

    @cached_property
    def config(self) -> ImageConfig:
        """The configuration, read from its blob and verified. Copy it before changing it."""
        from lamina.oci import ImageConfig

        return ImageConfig.decode(self._core.blobs.read(self.id))

    @cached_property
    def defaults(self) -> Defaults:
        """How commands are run in its containers: a part of :attr:`config`."""
        return Defaults.decode(self._core.blobs.read(self.id))

    @property
    def diff_ids(self) -> list[DiffId]:
        """DiffIDs of the layers, bottom first."""
        return self.config.rootfs.diff_ids

    @property
    def layers(self) -> list[Layer]:
        """The layers as this store's driver holds them, the top last."""
        with self._core.db.read() as tx:
            return chain(tx, self._top(tx))

    @property
    def top(self) -> Layer | None:
        """The topmost layer; None for an image of no layers."""
        return next(reversed(self.layers), None)

    @property
    def chain_id(self) -> ChainId | None:
        """ChainID of the topmost layer."""
        top = self.top
        return None if top is None else top.chain_id

    @property
    def size(self) -> int:
        """Bytes of the files of all layers, shared ones included."""
        return sum(layer.size or 0 for layer in self.layers)

    @property
    def created(self) -> datetime.datetime:
        """When it was made, as its configuration says; else when this store got it."""
        try:
            return datetime.datetime.fromisoformat(self.config.created or "")
        except ValueError:
            with self._core.db.read() as tx:
                got = tx.value("SELECT created FROM images WHERE id = ?", (self.id,))
            return datetime.datetime.fromtimestamp(got or 0, datetime.UTC)

    @property
    def manifests(self) -> list[tuple[Descriptor, bytes]]:
        """The manifests it came by or went out with, to the byte, the newest first.

        None for an image that was made here and never left.
        """
        from lamina.store.transfer import known

        with self._core.db.read() as tx:
            return known.manifests(tx, self.id)

    def show_manifest(self) -> Shown:
        """The newest of :attr:`manifests`; :class:`StoreError` if there is none."""
        from lamina.oci.showing import Shown

        for found in self.manifests:
            return Shown(*found)
        raise StoreError(
            f"image {self.short_id} was made here and has no manifest yet: 'lamina push' or "
            "'lamina save --format oci' makes one"
        )

    def show_config(self) -> Shown:
        """The configuration, to the byte."""
        from lamina.oci import mediatypes
        from lamina.oci.descriptor import described
        from lamina.oci.showing import Shown

        data = self._core.blobs.read(self.id)
        return Shown(described(data, mediatypes.OCI_CONFIG), data)

    @property
    def repo_digests(self) -> list[str]:
        """What registries have it as: ``debian@sha256:...``, what was pulled or pushed last first.

        It may have gone from there since.
        """
        from lamina.store.transfer import known

        with self._core.db.read() as tx:
            return [reference.familiar for reference in known.names(tx, self.id)]

    def tag(self, name: str) -> None:
        """Let ``name`` point to this image, and no longer to another one.

        Raises:
            InvalidName: not an image name.
            ImageNotFound: the image was removed meanwhile.
        """
        name = normalize(name)
        with self._core.db.write(durable=self._core.durable) as tx:
            if not tx.value("SELECT 1 FROM images WHERE id = ?", (self.id,)):
                raise ImageNotFound(self.id)
            point(tx, name, self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Image {self.short_id}>"

    def _top(self, tx: Transaction) -> LayerId | None:
        return top_layer(tx, self.id, self._core.driver_name)


class Images:
    """The images of a store."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def get(self, ref: str) -> Image:
        """The image of a name (``debian`` is ``debian:latest``), an id, or the beginning of one.

        Also of one of :attr:`Image.repo_digests`.

        Raises:
            ImageNotFound: there is none.
            AmbiguousName: the beginning of several ids.
        """
        with self._core.db.read() as tx:
            try:
                return Image(self._core, _resolve(tx, ref))
            except ImageNotFound as error:
                raise ImageNotFound(ref, _where_to_look(tx, ref)) from error

    def names_for(self, image: Image, ref: str) -> list[str]:
        """The name that ``ref`` is, or, where it is an id, all names of the image."""
        names = image.names
        mine = _matching(names, ref)
        return names if mine is None else [mine]

    def __iter__(self) -> Iterator[Image]:
        """All images, the newest in this store first."""
        with self._core.db.read() as tx:
            rows = tx.rows("SELECT id FROM images ORDER BY created DESC, id")
        return (Image(self._core, Digest(row[0])) for row in rows)

    def create(
        self, config: ImageConfig | bytes, top: Layer | None, names: Sequence[str] = ()
    ) -> Image:
        """Record an image. Its layers are held by the caller's work until this returns.

        A configuration that came from elsewhere is given as the bytes that have its digest. An
        image of the very same configuration is the same image; it gets the names too.
        """
        data = config if isinstance(config, bytes) else config.encode()
        names = [normalize(name) for name in names]
        with self._core.leases.path() as staged:
            id = self._core.blobs.stage(data, staged)
            with self._pending_blob(id), self._core.db.write(durable=self._core.durable) as tx:
                self._core.blobs.keep(staged, id)
                tx.run("INSERT OR IGNORE INTO images VALUES (?, ?)", (id, time.time()))
                tx.run(
                    "INSERT OR REPLACE INTO image_layers VALUES (?, ?, ?)",
                    (id, self._core.driver_name, None if top is None else top.id),
                )
                for name in names:
                    point(tx, name, id)
        return Image(self._core, id)

    @contextmanager
    def _pending_blob(self, id: Digest) -> Iterator[None]:
        """Around the transaction that makes an image: without it the blob does not stay."""
        with self._core.db.write() as tx:
            doom_blob(tx, id, self._core.leases.token)
        try:
            yield
        finally:
            discard_blob(self._core, id)

    def remove(self, ref: str, *, force: bool = False) -> list[str]:
        """Take a name away, and the image with its last name; as ``docker rmi``.

        By id an image of several names goes only with ``force``. Layers that no other image
        or container needs go too. Returns what went: names, then the id if the image went.

        Raises:
            ImageNotFound: there is none.
            ImageInUse: a container stands on it, or it has several names.
        """
        with self._core.db.write() as tx:
            id = _resolve(tx, ref)
            names = [row[0] for row in tx.rows("SELECT name FROM names WHERE image = ?", (id,))]
            mine = _matching(names, ref)
            if mine is not None and len(names) > 1:
                tx.run("DELETE FROM names WHERE name = ?", (mine,))
                return [mine]
            if len(names) > 1 and not force:
                listed = ", ".join(sorted(names))
                raise ImageInUse(
                    f"image {ref} has several names ({listed}); remove those, or force"
                )
            doomed = self._delete(tx, id)
        self._discard(id, doomed)
        return [*sorted(names), id]

    def remove_unused(self, image: Image, *, named: bool) -> bool:
        """Remove an image that no container uses and that has no name, or may have for ``named``.

        Returns whether it was removed.
        """
        with self._core.db.write() as tx:
            if not named and tx.value("SELECT 1 FROM names WHERE image = ?", (image.id,)):
                return False
            try:
                doomed = self._delete(tx, image.id)
            except (ImageInUse, ImageNotFound):
                return False
        self._discard(image.id, doomed)
        return True

    def _delete(self, tx: Transaction, id: Digest) -> list[Doomed]:
        user = tx.value("SELECT name FROM containers WHERE image = ?", (id,))
        if user is not None:
            raise ImageInUse(f"image {id} is in use by container {user}; remove that first")
        tops = tx.rows("SELECT layer FROM image_layers WHERE image = ?", (id,))
        tx.run(_FORGET_LOCATIONS, (id,))
        if not tx.run("DELETE FROM images WHERE id = ?", (id,)):
            raise ImageNotFound(id)
        tx.run("DELETE FROM locations WHERE digest = ?", (id,))
        lease = self._core.leases.token
        doom_blob(tx, id, lease)
        return [gone for (top,) in tops for gone in release(tx, top, lease)]

    def _discard(self, id: Digest, doomed: list[Doomed]) -> None:
        discard_blob(self._core, id)
        discard(self._core, doomed)


def point(tx: Transaction, name: str, id: Digest) -> None:
    """Let a normalised name point to an image."""
    tx.run("INSERT OR REPLACE INTO names VALUES (?, ?)", (name, id))


def top_layer(tx: Transaction, image: Digest, driver: str) -> LayerId | None:
    """The topmost layer of an image in the home of a driver; None if it has no layers.

    Raises:
        ImageNotFound: no such image.
        StoreError: the image is there, but only in another driver's home.
    """
    tops: dict[str, LayerId | None] = {
        row[0]: row[1]
        for row in tx.rows("SELECT driver, layer FROM image_layers WHERE image = ?", (image,))
    }
    if driver in tops:
        return tops[driver]
    if not tops:
        raise ImageNotFound(image)
    raise StoreError(
        f"image {image} is kept by driver {' and '.join(sorted(tops))}, this store was opened "
        f"with {driver}: use --driver {min(tops)}"
    )


def _resolve(tx: Transaction, ref: str) -> Digest:
    try:
        found = tx.value("SELECT image FROM names WHERE name = ?", (normalize(ref),))
    except InvalidName:
        found = None
    if found is None and "@" in ref:
        found = _by_repo_digest(tx, ref)
    if found is not None:
        return Digest(found)
    prefix = ref.removeprefix("sha256:")
    if not is_hex(prefix):
        raise ImageNotFound(ref)
    rows = tx.rows(
        "SELECT id FROM images WHERE id >= ? AND id < ? LIMIT 2",
        (f"sha256:{prefix}", f"sha256:{prefix}g"),
    )
    if not rows:
        raise ImageNotFound(ref)
    if len(rows) > 1:
        raise AmbiguousName(f"several images have an id that begins with {ref}")
    return Digest(rows[0][0])


def _where_to_look(tx: Transaction, ref: str) -> str:
    """What to do about an image that is not there."""
    hint = "'lamina images' lists them"
    if is_hex(ref.removeprefix("sha256:")):
        return hint
    try:
        reference = Reference.parse(ref)
    except InvalidName:
        return hint
    repository = normalize(reference.name).rpartition(":")[0]
    names = [row[0] for row in tx.rows("SELECT name FROM names ORDER BY name")]
    others = [name for name in names if name.rpartition(":")[0] == repository]
    there = f"; the store has {', '.join(others[:5])}" if others else ""
    return f"{hint}, 'lamina pull {printable(ref)}' fetches one{there}"


def _by_repo_digest(tx: Transaction, ref: str) -> str | None:
    """The image of ``debian@sha256:...``, if that came from or went there.

    One index may stand for several; then it is that for this machine.
    """
    from lamina.oci.platform import this_machine

    try:
        reference = Reference.parse(ref)
    except InvalidName:
        return None
    place = (reference.digest, reference.registry, reference.repository)
    seen = "SELECT 1 FROM locations WHERE digest = ? AND registry = ? AND repository = ?"
    if not tx.value(seen, place):
        return None
    found: str | None = tx.value(
        "SELECT image FROM resolved WHERE digest = ? ORDER BY platform = ? DESC LIMIT 1",
        (reference.digest, str(this_machine())),
    ) or tx.value("SELECT image FROM manifests WHERE digest = ?", (reference.digest,))
    return found


def _matching(names: list[str], ref: str) -> str | None:
    """The one of ``names`` that ``ref`` means; None if it means an id."""
    try:
        name = normalize(ref)
    except InvalidName:
        return None
    return name if name in names else None
