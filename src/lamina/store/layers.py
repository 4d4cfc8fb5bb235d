"""Layers: where they come from, how they are found, how they go."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, cast

from lamina.errors import DigestMismatch, LayerBroken, LayerInUse, LayerNotFound
from lamina.oci.digest import next_chain_id
from lamina.store.core import Core
from lamina.store.database import Row, Transaction
from lamina.store.making import Making, making
from lamina.store.removal import discard, release
from lamina.types import ChainId, DiffId, LayerId

if TYPE_CHECKING:
    from lamina.archive.compression import Decompressed
    from lamina.progress import ProgressCallback
    from lamina.store.work import Work

Kind = Literal["image", "writable", "frozen"]


class Layer(NamedTuple):
    """What the store knows of a layer. ``size``: bytes of its files, None if not measured;
    ``tar_size``: bytes of its tar. ``diff_id`` and ``chain_id`` are None for what belongs to a
    container. ``created``: seconds since 1970."""

    id: LayerId
    driver: str
    kind: Kind
    parent: LayerId | None
    diff_id: DiffId | None
    chain_id: ChainId | None
    size: int | None
    tar_size: int | None
    created: float


class Layers:
    """The layers of a store."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # -- finding ------------------------------------------------------------------------

    def get(self, id: str) -> Layer:
        """The layer of this id; :class:`LayerNotFound` if there is none."""
        with self._core.db.read() as tx:
            row = tx.row("SELECT * FROM layers WHERE id = ?", (id,))
        if row is None:
            raise LayerNotFound(id)
        return _layer(row)

    def find(self, chain_id: ChainId) -> Layer | None:
        """The layer of this chain id that the store's driver holds."""
        with self._core.db.read() as tx:
            return self._find(tx, chain_id)

    def with_diff_id(self, diff_id: DiffId) -> list[Layer]:
        """All layers made of this tar, whatever they stand on."""
        with self._core.db.read() as tx:
            rows = tx.rows("SELECT * FROM layers WHERE diff_id = ?", (diff_id,))
        return [_layer(row) for row in rows]

    def chain(self, top: LayerId | None) -> list[Layer]:
        """A layer and all below it, the top last; nothing for None."""
        with self._core.db.read() as tx:
            return chain(tx, top)

    def __iter__(self) -> Iterator[Layer]:
        """All layers, in no order."""
        with self._core.db.read() as tx:
            rows = tx.rows("SELECT * FROM layers")
        return map(_layer, rows)

    def _find(self, tx: Transaction, chain_id: ChainId) -> Layer | None:
        row = tx.row(
            "SELECT * FROM layers WHERE driver = ? AND chain_id = ?",
            (self._core.driver_name, chain_id),
        )
        return None if row is None else _layer(row)

    # -- making -------------------------------------------------------------------------

    def register(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        parent: Layer | None = None,
        *,
        work: Work,
        diff_id: DiffId | None = None,
        what: str = "layer",
        root_fs: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Layer:
        """Unpack a layer's tar, compressed or not, and record it; held by ``work``.

        A layer that is there already, of the same tar on the same parent, is returned and
        what was unpacked is thrown away; with ``diff_id`` it is found before any is read.
        With ``root_fs`` the tar must not be that of an image.

        Raises:
            InvalidArchive: the tar is damaged or hostile. Nothing is left of it.
            DigestMismatch: it does not have the ``diff_id`` that was said.
            OSError: the disk is full, or the like. Nothing is left.
        """
        from lamina.archive.compression import open_stream
        from lamina.archive.unpack import UnpackOptions
        from lamina.store.observing import RootFsWatch, reporter
        from lamina.store.splits import recording

        above = parent.chain_id if parent else None
        if diff_id is not None and (known := self.hold(next_chain_id(above, diff_id), work)):
            return known
        below = None if parent is None else parent.id
        with (
            making(self._core, lambda driver, new: driver.create(new, below)) as made,
            self._core.leases.path() as split,
            open_stream(source, digest=None) as tar,
        ):
            report = progress and reporter(tar, what, _size(source), progress)
            with recording(split, self._core.driver) as recorder:
                unpacked = self._core.driver.apply(
                    made.id,
                    below,
                    cast(BinaryIO, tar),
                    observer=RootFsWatch(recorder) if root_fs else recorder,
                    options=UnpackOptions(
                        on_superseded=recorder.superseded if recorder else None, progress=report
                    ),
                )
            if diff_id is not None and tar.diff_id != diff_id:
                raise DigestMismatch(what, diff_id, tar.diff_id)
            self._core.splits.keep(split, made.id)
            self._core.sync_content()
            return self._commit(made, parent, tar, unpacked.size, work)

    def _commit(
        self, made: Making, parent: Layer | None, tar: Decompressed, size: int, work: Work
    ) -> Layer:
        chain_id = next_chain_id(parent.chain_id if parent else None, tar.diff_id)
        layer = Layer(
            id=made.id,
            driver=made.driver,
            kind="image",
            parent=None if parent is None else parent.id,
            diff_id=tar.diff_id,
            chain_id=chain_id,
            size=size,
            tar_size=tar.size,
            created=time.time(),
        )
        return self.record(made, layer, work)

    def record(self, made: Making, layer: Layer, work: Work) -> Layer:
        """Put a layer that is complete on disk into the tables, held by ``work``.

        Returns the one of its chain id that is there already, if there is; ``made`` goes then.
        """
        assert layer.chain_id is not None
        with self._core.db.write(durable=self._core.durable) as tx:
            known = self._find(tx, layer.chain_id)
            if known is None:
                made.record(tx, **layer._asdict())
            work.hold(tx, (known or layer).id)
        return known or layer

    def hold(self, chain_id: ChainId, work: Work) -> Layer | None:
        """The layer of this chain id, held by ``work``; None if the store's driver has none."""
        with self._core.db.write() as tx:
            known = self._find(tx, chain_id)
            if known is not None:
                work.hold(tx, known.id)
        return known

    # -- reading ------------------------------------------------------------------------

    def tar(self, layer: Layer) -> BinaryIO:
        """The layer's tar, byte for byte as it came in; verified while it is read.

        Reading raises :class:`DigestMismatch` at the end of a tar that is not what it was, or
        :class:`LayerBroken` where a file of it is gone. Close the stream.
        """
        from lamina.archive.stream import open_chunks
        from lamina.store.verified import VerifiedTar

        diff_id = _diff_id(layer)
        if self._core.splits.has(layer.id):
            return open_chunks(_verified(self._assembled(layer), layer))
        return VerifiedTar(self.unverified_tar(layer), layer.id, diff_id)

    def unverified_tar(self, layer: Layer) -> BinaryIO:
        """:meth:`tar` for those who compute its digest themselves."""
        from lamina.archive.stream import open_chunks

        _diff_id(layer)
        if self._core.splits.has(layer.id):
            return open_chunks(self._assembled(layer))
        return self._core.driver_named(layer.driver).diff(layer.id, layer.parent)

    def _assembled(self, layer: Layer) -> Iterator[bytes]:
        driver = self._core.driver_named(layer.driver)
        with closing(driver.diff_getter(layer.id)) as files:
            yield from self._core.splits.assemble(layer.id, files)

    def size(self, layer: Layer) -> int:
        """Bytes of the layer's files. Measured, and remembered, if it was not before."""
        if layer.size is not None:
            return layer.size
        size = self._core.driver_named(layer.driver).diff_size(layer.id, layer.parent)
        if layer.kind != "writable":
            with self._core.db.write() as tx:
                tx.run("UPDATE layers SET size = ? WHERE id = ?", (size, layer.id))
        return size

    # -- removing -----------------------------------------------------------------------

    def remove(self, id: str) -> None:
        """Remove one layer.

        Raises:
            LayerNotFound: there is none of this id.
            LayerInUse: it has children, or an image, container or snapshot needs it.
        """
        with self._core.db.write() as tx:
            row = tx.row("SELECT parent FROM layers WHERE id = ?", (id,))
            if row is None:
                raise LayerNotFound(id)
            if user := _user_of(tx, LayerId(id)):
                raise LayerInUse(id, user)
            token = self._core.leases.token
            doomed = release(tx, LayerId(id), token, below=False)
        discard(self._core, doomed)


def chain(tx: Transaction, top: LayerId | None) -> list[Layer]:
    """A layer and all below it, the top last."""
    rows = tx.rows(
        "WITH RECURSIVE below (id, height) AS (VALUES (?1, 0) UNION ALL"
        " SELECT layers.parent, height + 1 FROM below JOIN layers USING (id))"
        " SELECT layers.* FROM below JOIN layers USING (id) ORDER BY height DESC",
        (top,),
    )
    return [_layer(row) for row in rows]


def _layer(row: Row) -> Layer:
    return Layer(*row)


def _user_of(tx: Transaction, id: LayerId) -> str | None:
    """Who needs a layer, for a message; None if nobody does."""
    for query, text in _USERS:
        if (found := tx.value(query, (id,))) is not None:
            return text.format(found)
    return None


_USERS = (
    ("SELECT id FROM layers WHERE parent = ?", "layer {} stands on it"),
    ("SELECT image FROM image_layers WHERE layer = ?", "image {} needs it"),
    ("SELECT name FROM containers WHERE layer = ?", "it is the top of container {}"),
    ("SELECT name FROM snapshots WHERE layer = ?", "snapshot {} needs it"),
    ("SELECT work FROM holds WHERE layer = ?", "an import or the like is at work on it"),
)


def _diff_id(layer: Layer) -> DiffId:
    if layer.diff_id is None:
        raise LayerBroken(layer.id, "it belongs to a container and has no tar of its own")
    return layer.diff_id


def _verified(chunks: Iterator[bytes], layer: Layer) -> Iterator[bytes]:
    import hashlib

    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    actual = f"sha256:{digest.hexdigest()}"
    if actual != layer.diff_id:
        raise DigestMismatch(f"tar of layer {layer.id}", str(layer.diff_id), actual)


def _size(source: str | os.PathLike[str] | BinaryIO) -> int | None:
    """Bytes of a source that is a regular file; None for a pipe."""
    try:
        status = os.fstat(source.fileno()) if hasattr(source, "fileno") else os.stat(source)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
