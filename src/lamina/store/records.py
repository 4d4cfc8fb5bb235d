"""What the tables say about a container."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lamina.errors import AmbiguousName, ContainerNotFound, NameInUse
from lamina.store.core import Core
from lamina.store.database import Row, Transaction
from lamina.store.names import check_name, is_hex, made_up
from lamina.types import Digest, LayerId


class Record(NamedTuple):
    """One row of ``containers``. Times are seconds since 1970."""

    id: str
    name: str
    driver: str
    layer: LayerId
    floor: LayerId | None
    image: Digest | None
    base: Path | None
    ephemeral: bool
    options: Mapping[str, str]
    labels: Mapping[str, str]
    command: Sequence[str]
    created: float
    started: float | None = None
    finished: float | None = None
    exit_code: int | None = None
    pinned: str | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether it was mounted to stay, since the last boot."""
        return self.pinned == boot_id()


def fetch(core: Core, id: str) -> Record:
    """The container of a whole id; :class:`ContainerNotFound` if there is none."""
    with core.db.read() as tx:
        return fetch_in(tx, id)


def fetch_in(tx: Transaction, id: str) -> Record:
    """:func:`fetch` within a transaction."""
    row = tx.row("SELECT * FROM containers WHERE id = ?", (id,))
    if row is None:
        raise ContainerNotFound(id)
    return from_row(row)


def from_row(row: Row) -> Record:
    """A record from a whole row."""
    values = dict(row)
    for name in ("options", "labels", "command"):
        values[name] = json.loads(values[name])
    base = values["base"]
    values["base"] = None if base is None else Path(os.fsdecode(base))
    values["ephemeral"] = bool(values["ephemeral"])
    return Record(**values)


def resolve(tx: Transaction, ref: str) -> str:
    """The id of the container of this name, id or beginning of an id.

    Raises:
        ContainerNotFound: there is none.
        AmbiguousName: the beginning of several ids.
    """
    found: str | None = tx.value("SELECT id FROM containers WHERE name = ?", (ref,))
    if found is not None:
        return found
    rows = []
    if is_hex(ref):
        query = "SELECT id FROM containers WHERE id >= ? AND id < ? LIMIT 2"
        rows = tx.rows(query, (ref, f"{ref}g"))
    if not rows:
        raise ContainerNotFound(ref)
    if len(rows) > 1:
        raise AmbiguousName(f"several containers have an id that begins with {ref}")
    id: str = rows[0][0]
    return id


def insert(tx: Transaction, record: Record) -> None:
    """Add a container."""
    tx.insert(
        "containers",
        id=record.id,
        name=record.name,
        driver=record.driver,
        layer=record.layer,
        floor=record.floor,
        image=record.image,
        base=None if record.base is None else os.fsencode(record.base),
        ephemeral=record.ephemeral,
        options=json.dumps(dict(record.options)),
        labels=json.dumps(dict(record.labels)),
        command=json.dumps(list(record.command)),
        created=record.created,
    )


def free_name(tx: Transaction, name: str | None) -> str:
    """``name``, or a made-up one for None, if no container has it.

    Raises:
        InvalidName: a container can't be called that.
        NameInUse: another container is called that.
    """
    if name is not None:
        if _is_taken(tx, check_name(name, "container")):
            raise NameInUse(f"there is a container called {name} already")
        return name
    name = made_up()
    while _is_taken(tx, name):
        name = f"{made_up()}_{time.time_ns() % 1000}"
    return name


@cache
def boot_id() -> str:
    """What the kernel calls this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _is_taken(tx: Transaction, name: str) -> bool:
    return bool(tx.value("SELECT 1 FROM containers WHERE name = ?", (name,)))
