"""The life of snapshots: prepare, view, commit, remove, and what is asked of them.

Lock order. Nobody waits for a lock while holding one that is later here:

    1. the locks of keys and names, in the order of their text (only in this process, which is
       the only one: lamina.store.snapshots.home). Held by who makes, commits or removes that
       snapshot, also while its files are copied or counted: nobody else has to do with them
    2. the lock of a committed layer whose views come and go
    3. the driver's locks, inside its calls
    4. the database's write lock, for one short transaction

``stat``, ``list`` and ``usage`` take none of the first three.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType

from lamina.drivers.base import NO_OPTIONS, Mount
from lamina.errors import (
    InvalidSnapshotRequest,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotRefused,
    printable,
)
from lamina.log import Log
from lamina.store.database import Transaction
from lamina.store.policy import SyncPolicy
from lamina.store.snapshots.discarding import Discards
from lamina.store.snapshots.home import Home
from lamina.store.snapshots.keylocks import KeyLocks
from lamina.store.snapshots.questions import Questions
from lamina.store.snapshots.records import (
    Info,
    Kind,
    Record,
    check_key,
    check_labels,
    find,
)
from lamina.store.snapshots.reserve import FULL
from lamina.store.transfer.writeback import written_early
from lamina.types import LayerId

log = Log(__name__)

NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Snapshots(Questions):
    """The snapshots of one root; any number of threads may use it. See the package.

    Args:
        root: where they are kept; this process's alone while it is open.
        run: for locks and references, empty after a reboot; by default chosen for ``root``.
        driver: by default the one that the root was begun with, else the best that works.
        sync: what of a committed snapshot survives a power cut.

    Raises as :class:`lamina.store.snapshots.home.Home`.
    """

    def __init__(
        self,
        root: Path,
        *,
        run: Path | None = None,
        driver: str | None = None,
        options: Mapping[str, str] = NO_OPTIONS,
        sync: SyncPolicy = SyncPolicy.LAYER,
    ) -> None:
        self._home = Home(root, run=run, driver=driver, options=options, sync=sync)
        assert self._home.db is not None
        super().__init__(self._home.db, self._home.driver)
        self._keys = KeyLocks()
        self._shared = KeyLocks()
        self._kept: set[LayerId] = set()  # committed, and mounted for a client that had it then
        self._discards = Discards(self.driver, self._db, self._home.reserve)
        try:
            self._forget_half_made()
        except BaseException:
            self.close()
            raise

    @property
    def root(self) -> Path:
        """Where they are kept."""
        return self._home.root

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another have the root. Mounts stay: those who run on them do not know of us."""
        self._discards.close()
        self._home.close()

    # -- making -------------------------------------------------------------------------

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] = NO_LABELS
    ) -> list[Mount]:
        """Make an active snapshot on a committed one, or on nothing; its mounts.

        Raises:
            SnapshotExists: the key is taken.
            SnapshotNotFound: there is no such parent.
            InvalidSnapshotRequest: the parent is not committed, or a key or label can't be.
        """
        return self._make(Kind.ACTIVE, key, parent, labels)

    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] = NO_LABELS
    ) -> list[Mount]:
        """Make a view of a committed snapshot, or of nothing; mounts that refuse to be written.

        Nothing is copied: it shows the parent's layer. Raises as :meth:`prepare`.
        """
        return self._make(Kind.VIEW, key, parent, labels)

    def _make(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        check_key(key)
        encoded = check_labels(labels)
        with self._keys.held(key):
            made = self._begin(kind, key, parent, encoded)
            try:
                if not made.shares_layer:
                    self._make_layer(made)
                return self._mounts(made)
            except BaseException:
                self._forget(made)
                raise

    def _begin(self, kind: Kind, key: str, parent: str, labels: str) -> Record:
        """The row of a new snapshot. It keeps the parent, and is not seen before its layer is."""
        now = time.time_ns()
        with self._db.write() as tx:
            below = _parent(tx, parent)
            tx.run("DELETE FROM snapshots WHERE name = ? AND NOT ready", (key,))  # on a full disk
            if tx.value("SELECT 1 FROM snapshots WHERE name = ?", (key,)):
                raise SnapshotExists(key)
            shared = below is not None and kind is Kind.VIEW
            tx.insert(
                "snapshots", name=key, kind=kind, parent=below.id if below else None,
                layer=below.layer if below and shared else "", labels=labels,
                created=now, updated=now, ready=shared,
            )  # fmt: skip
            id: int = tx.value("SELECT last_insert_rowid()")
            layer = below.layer if below and shared else LayerId(str(id))
            if not shared:
                tx.run("UPDATE snapshots SET layer = ? WHERE id = ?", (layer, id))
        info = Info(key, parent, kind, now, now, {})
        return Record(id, info, layer, below.layer if below else None, None, None)

    def _make_layer(self, made: Record) -> None:
        try:
            self._create(made)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._discards.drain()  # there may be room when what was removed is gone
            self._create(made)
        with self._db.write() as tx:
            tx.run("UPDATE snapshots SET ready = 1 WHERE id = ?", (made.id,))

    def _create(self, made: Record) -> None:
        if made.info.kind is Kind.VIEW:
            self.driver.create(made.layer)
        else:
            self.driver.create_read_write(made.layer, made.parent_layer)

    def _forget(self, made: Record) -> None:
        def forget() -> None:
            with self._db.write() as tx:
                tx.run("DELETE FROM snapshots WHERE id = ?", (made.id,))

        self._home.reserve.through(forget)
        self._let_go(made)

    def _forget_half_made(self) -> None:
        """What was being made when the process before us died; if it must stay, it is not seen."""
        with self._db.read() as tx:
            rows = tx.rows("SELECT layer FROM snapshots WHERE NOT ready")
        if not rows:
            return

        def forget() -> None:
            with self._db.write() as tx:
                tx.run("DELETE FROM snapshots WHERE NOT ready")

        try:
            self._home.reserve.through(forget)
        except OSError as error:
            log.warning("can't forget what was half made: %s", error)
            return
        for row in rows:
            self._discards.discard(LayerId(row[0]))

    # -- mounts -------------------------------------------------------------------------

    def mounts(self, key: str) -> list[Mount]:
        """What to mount to see an active snapshot or a view.

        Raises:
            SnapshotNotFound: there is none.
            SnapshotRefused: it is committed.
        """
        with self._keys.held(key):
            record = self._find(key)
            if record.info.kind is Kind.COMMITTED:
                raise SnapshotRefused(key, "it is committed: mounts are of an active one or a view")
            return self._mounts(record)

    def _mounts(self, record: Record) -> list[Mount]:
        if not record.shares_layer:
            return self.driver.mounts(record.layer, readonly=record.info.kind is Kind.VIEW)
        with self._shared.held(record.layer):
            return self.driver.mounts(record.layer, readonly=True)

    # -- committing ---------------------------------------------------------------------

    def commit(
        self,
        name: str,
        key: str,
        labels: Mapping[str, str] = NO_LABELS,
        *,
        parent: str = "",
    ) -> None:
        """Make the active snapshot ``key`` a committed one called ``name``.

        It may still be mounted; who writes then writes into what others stand on. Its labels are
        replaced by ``labels``. ``parent`` puts one that stands on nothing on that snapshot, as
        layers are that were unpacked side by side.

        Raises:
            SnapshotExists: the name is taken.
            SnapshotNotFound: there is no such snapshot, or no such parent.
            SnapshotRefused: it is not active, or stands on another parent.
            InvalidSnapshotRequest: as :meth:`prepare`.
        """
        check_key(name)
        encoded = check_labels(labels)
        with self._keys.held(name, key):
            with self._db.read() as tx:
                if tx.value("SELECT 1 FROM snapshots WHERE name = ?", (name,)):
                    raise SnapshotExists(name)
                record = _active(tx, key)
                below = _new_parent(tx, record, parent)
            released = self.driver.release_mounts(record.layer)
            if below is None:
                self._finish(record, name, encoded)
                if not released:
                    self._kept.add(record.layer)
            else:
                self._rebase(record, name, encoded, below)

    def _rebase(self, record: Record, name: str, labels: str, below: Record) -> None:
        """Commit what a snapshot changes as a layer on ``below``; its own layer goes."""
        layer = LayerId(f"{record.layer}-on-{below.id}")
        with self._discards.making(layer):
            self.driver.create_read_write(layer, below.layer)
            try:
                with closing(self.driver.diff(record.layer)) as tar:
                    self.driver.apply(layer, below.layer, tar)
                self._finish(record._replace(layer=layer), name, labels, below)
            except BaseException:
                self._discards.discard(layer)
                raise
        self._discards.discard(record.layer)

    def _finish(self, record: Record, name: str, labels: str, below: Record | None = None) -> None:
        usage = self.driver.usage(record.layer)
        self._home.sync_content()
        now = time.time_ns()
        with self._db.write(durable=self._home.durable) as tx:
            if below is not None and find(tx, below.info.name).id != below.id:
                raise SnapshotNotFound(below.info.name)
            tx.run(
                "UPDATE snapshots SET name = ?, kind = ?, labels = ?, created = ?, updated = ?,"
                " size = ?, inodes = ?, layer = ?, parent = coalesce(?, parent) WHERE id = ?",
                (name, Kind.COMMITTED, labels, now, now, usage.size, usage.inodes, record.layer,
                 below.id if below else None, record.id),
            )  # fmt: skip

    def written_early(self) -> AbstractContextManager[None]:
        """Within it files go to disk as they are made, so that :meth:`commit` waits little.

        Raises as :func:`lamina.store.transfer.writeback.written_early`.
        """
        return written_early(self._home)

    # -- removing -----------------------------------------------------------------------

    def remove(self, key: str) -> None:
        """End a snapshot. Its files go soon after; :meth:`cleanup` waits for that.

        Raises:
            SnapshotNotFound: there is none.
            SnapshotRefused: others stand on it.
        """
        with self._keys.held(key):
            record = self._home.reserve.through(lambda: self._delete(key))
        self._let_go(record)

    def _delete(self, key: str) -> Record:
        with self._db.write() as tx:
            record = find(tx, key)
            if tx.value("SELECT 1 FROM snapshots WHERE parent = ?", (record.id,)):
                raise SnapshotRefused(key, "can't be removed, others stand on it")
            tx.run("DELETE FROM snapshots WHERE id = ?", (record.id,))
        return record

    def _let_go(self, record: Record) -> None:
        """Give up the layer of a snapshot whose row is gone."""
        if record.shares_layer:
            self._release(record.layer)
        else:
            self._kept.discard(record.layer)
            self._discards.later(record.layer)

    def _release(self, layer: LayerId) -> None:
        """Unmount what is kept for a committed layer, unless a view has it."""
        with self._shared.held(layer):
            with self._db.read() as tx:
                views = tx.value(
                    "SELECT 1 FROM snapshots WHERE layer = ? AND kind = ?", (layer, Kind.VIEW)
                )
            if not views and self.driver.release_mounts(layer):
                self._kept.discard(layer)

    def cleanup(self) -> int:
        """Remove what no snapshot has any more, and wait for what goes already.

        Returns how many layers a crash or a busy file had left.
        """
        for layer in list(self._kept):
            self._release(layer)
        return self._discards.sweep()

    @contextmanager
    def held(self, key: str) -> Iterator[Record]:
        """An active snapshot that nobody commits, removes or mounts anew meanwhile."""
        with self._keys.held(key):
            with self._db.read() as tx:
                record = _active(tx, key)
            yield record


def _parent(tx: Transaction, name: str) -> Record | None:
    """The snapshot that another is to stand on."""
    if not name:
        return None
    parent = find(tx, name)
    if parent.info.kind is not Kind.COMMITTED:
        raise InvalidSnapshotRequest(f"parent {printable(name)} is not committed")
    return parent


def _active(tx: Transaction, key: str) -> Record:
    record = find(tx, key)
    if record.info.kind is not Kind.ACTIVE:
        raise SnapshotRefused(key, "it is not active")
    return record


def _new_parent(tx: Transaction, record: Record, name: str) -> Record | None:
    """What a snapshot is to be put on when it is committed; None leaves it where it is."""
    if name in ("", record.info.parent):
        return None
    if record.info.parent:
        raise SnapshotRefused(record.info.name, "it stands on another parent")
    return _parent(tx, name)
