"""What is asked of snapshots, and their labels: nothing here waits for who works on one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lamina.drivers.base import Driver
from lamina.errors import InvalidSnapshotRequest, LayerNotFound, printable
from lamina.store.database import Database
from lamina.store.snapshots.filters import parse_filters
from lamina.store.snapshots.records import Info, Kind, Record, check_labels, find, page, with_layer

_PAGE = 500
"""Snapshots that a list reads at a time."""


class Usage(NamedTuple):
    """What a snapshot itself takes on disk."""

    size: int
    inodes: int


class Questions:
    """The part of :class:`lamina.store.snapshots.Snapshots` that waits for nobody."""

    def __init__(self, db: Database, driver: Driver) -> None:
        self._db = db
        self.driver = driver
        """What keeps the layers."""

    def stat(self, key: str) -> Info:
        """What is known of a snapshot.

        Raises:
            SnapshotNotFound: there is none.
        """
        return self._find(key).info

    def list(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """The snapshots that one of the filters wants, or all; see :mod:`.filters`.

        They are read in pages: what is made or removed meanwhile may be among them or not.

        Raises:
            InvalidSnapshotRequest: a filter can't be understood.
        """
        wanted = parse_filters(filters)
        return (info for info in self._all() if wanted(info))

    def _all(self) -> Iterator[Info]:
        records = self._page(0)
        while records:
            yield from (record.info for record in records)
            records = self._page(records[-1].id)

    def _page(self, after: int) -> Sequence[Record]:
        with self._db.read() as tx:
            return page(tx, after, _PAGE)

    def usage(self, key: str) -> Usage:
        """What a snapshot takes: an active one now, a committed one as recorded, a view nothing.

        Raises:
            SnapshotNotFound: there is none.
        """
        record = self._find(key)
        if record.size is not None:
            return Usage(record.size, record.inodes or 0)
        if record.info.kind is Kind.VIEW:
            return Usage(0, 0)
        try:
            return Usage(*self.driver.usage(record.layer))
        except LayerNotFound:
            self._find(key)  # removed meanwhile
            raise

    def update(self, key: str, labels: Mapping[str, str], fields: Sequence[str] = ()) -> Info:
        """Change the labels: all of them, or those that ``fields`` names (``labels.KEY``).

        A label that is named and not in ``labels`` goes. Nothing else can be changed.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            InvalidSnapshotRequest: another field is named, or a label can't be.
        """
        check_labels(labels)
        _check_fields(fields)
        with self._db.write() as tx:
            record = find(tx, key)
            changed = _changed_labels(record.info.labels, labels, fields)
            now = max(time.time_ns(), record.info.updated + 1)
            tx.run(
                "UPDATE snapshots SET labels = ?, updated = ? WHERE id = ?",
                (check_labels(changed), now, record.id),
            )
        return record.info._replace(labels=changed, updated=now)

    def count(self) -> dict[Kind, int]:
        """How many snapshots of each kind there are."""
        with self._db.read() as tx:
            rows = tx.rows("SELECT kind, count(*) FROM snapshots WHERE ready GROUP BY kind")
        return dict.fromkeys(Kind, 0) | {Kind(row[0]): row[1] for row in rows}

    def committed_size(self) -> int:
        """Bytes of all committed snapshots together, as recorded."""
        with self._db.read() as tx:
            return int(tx.value("SELECT coalesce(sum(size), 0) FROM snapshots") or 0)

    def with_layer(self, layer: str) -> Sequence[Record]:
        """The snapshots that show a layer of the driver: one of its own, and perhaps views."""
        with self._db.read() as tx:
            return with_layer(tx, layer)

    def _find(self, key: str) -> Record:
        with self._db.read() as tx:
            return find(tx, key)


def _check_fields(fields: Sequence[str]) -> None:
    for name in fields:
        if name != "labels" and not name.startswith("labels."):
            raise InvalidSnapshotRequest(f"field '{printable(name)}' can't be changed")


def _changed_labels(
    old: Mapping[str, str], new: Mapping[str, str], fields: Sequence[str]
) -> dict[str, str]:
    if not fields or "labels" in fields:
        return dict(new)
    changed = dict(old)
    for name in fields:
        label = name.removeprefix("labels.")
        if label in new:
            changed[label] = new[label]
        else:
            changed.pop(label, None)
    return changed
