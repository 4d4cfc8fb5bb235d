"""The tables of ``snapshots.db``.

A database of its own, not tables in ``lamina.db``: it has one writer, the server, for as long as
that runs; nothing in it refers to images or containers; and what one of the two loses or outgrows
is nothing to the other.
"""

from __future__ import annotations

_VERSION_1 = """
CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- name: the key of an active snapshot or a view, the name of a committed one. They are one space.
-- layer: the driver's layer; a view with a parent has its parent's. created, updated: ns of 1970.
-- size, inodes: recorded when it was committed. ready: 0 while its layer is being made; such a row
-- keeps its parent and is otherwise not there.
CREATE TABLE snapshots (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL UNIQUE,
    kind    INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
    parent  INTEGER REFERENCES snapshots (id),
    layer   TEXT NOT NULL,
    labels  TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    size    INTEGER,
    inodes  INTEGER,
    ready   INTEGER NOT NULL,
    CHECK ((kind = 3) = (size IS NOT NULL))
);
CREATE INDEX snapshots_parent ON snapshots (parent) WHERE parent IS NOT NULL;
CREATE INDEX snapshots_layer ON snapshots (layer);
CREATE INDEX snapshots_making ON snapshots (id) WHERE NOT ready;
"""

MIGRATIONS: tuple[str, ...] = (_VERSION_1,)
"""As :data:`lamina.store.schema.MIGRATIONS`."""
