"""What is known of a snapshot, and how it lies in the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from lamina.errors import InvalidSnapshotRequest, SnapshotNotFound, printable
from lamina.store.database import Row, Transaction
from lamina.types import LayerId

_LONGEST_KEY = 32 << 10
"""Bytes of a key; containerd's own database takes no longer ones."""
_LONGEST_LABEL = 4096
"""Bytes of a label, its key and its value (containerd, package ``labels``)."""
_MOST_LABELS = 1 << 20
"""Bytes of all labels of a snapshot together: they have to fit into an answer."""


class Kind(IntEnum):
    """What a snapshot is; the numbers are those of containerd's protocol."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class Info(NamedTuple):
    """A snapshot, as its users know it."""

    name: str
    """The key, or the name that it was committed under."""
    parent: str
    """The name of the snapshot that it stands on; "" for none."""
    kind: Kind
    created: int
    """Nanoseconds since 1970; when it was committed, for a committed one."""
    updated: int
    labels: Mapping[str, str]


class Record(NamedTuple):
    """A row, and the layer that goes with it."""

    id: int
    info: Info
    layer: LayerId
    parent_layer: LayerId | None
    size: int | None
    inodes: int | None

    @property
    def shares_layer(self) -> bool:
        """Whether the layer is another snapshot's: that of a view is its parent's."""
        return self.info.kind is Kind.VIEW and self.parent_layer is not None


_SELECT = (
    "SELECT s.*, p.name AS parent_name, p.layer AS parent_layer"
    " FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent WHERE s.ready AND "
)


def find(tx: Transaction, name: str) -> Record:
    """The snapshot of a key or name.

    Raises:
        SnapshotNotFound: there is none.
    """
    row = tx.row(_SELECT + "s.name = ?", (name,))
    if row is None:
        raise SnapshotNotFound(name)
    return _record(row)


def page(tx: Transaction, after: int, count: int) -> list[Record]:
    """Snapshots in the order in which they were made, from the one after the row ``after``."""
    rows = tx.rows(_SELECT + "s.id > ? ORDER BY s.id LIMIT ?", (after, count))
    return [_record(row) for row in rows]


def with_layer(tx: Transaction, layer: str) -> list[Record]:
    """The snapshots that show a layer: one of its own, and perhaps views."""
    return [_record(row) for row in tx.rows(_SELECT + "s.layer = ? ORDER BY s.id", (layer,))]


def _record(row: Row) -> Record:
    info = Info(
        name=row["name"],
        parent=row["parent_name"] or "",
        kind=Kind(row["kind"]),
        created=row["created"],
        updated=row["updated"],
        labels=json.loads(row["labels"]),
    )
    below = row["parent_layer"]
    return Record(
        id=row["id"],
        info=info,
        layer=LayerId(row["layer"]),
        parent_layer=None if below is None else LayerId(below),
        size=row["size"],
        inodes=row["inodes"],
    )


def check_key(key: str) -> str:
    """``key``, if it can be one: any text that is not empty and not too long.

    Raises:
        InvalidSnapshotRequest: it can't.
    """
    try:
        length = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidSnapshotRequest(f"not UTF-8: {printable(key)}") from error
    if not 0 < length <= _LONGEST_KEY:
        raise InvalidSnapshotRequest(f"a key has 1 to {_LONGEST_KEY} bytes, not {length}")
    return key


def check_labels(labels: Mapping[str, str]) -> str:
    """Labels as the database has them.

    Raises:
        InvalidSnapshotRequest: one is too long, or all together are.
    """
    total = 0
    for key, value in labels.items():
        length = len(key.encode(errors="surrogatepass")) + len(value.encode(errors="surrogatepass"))
        if length > _LONGEST_LABEL:
            raise InvalidSnapshotRequest(
                f"label {printable(key)[:64]}: {length} bytes of key and value, "
                f"{_LONGEST_LABEL} is the limit"
            )
        total += length
    if total > _MOST_LABELS:
        raise InvalidSnapshotRequest(
            f"{len(labels)} labels of {total} bytes, {_MOST_LABELS} is the limit"
        )
    return json.dumps(dict(labels), ensure_ascii=True, separators=(",", ":"))
