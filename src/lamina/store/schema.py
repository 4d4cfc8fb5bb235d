"""The tables of ``lamina.db``, and the steps from one version of them to the next."""

from __future__ import annotations

APPLICATION_ID = 0x4C414D49
"""``PRAGMA application_id`` of a Lamina database: "LAMI"."""

_VERSION_1 = """
CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- One row a layer that the driver holds. kind: 'image', a layer with a DiffID, never changed
-- again; 'writable', the top of a container; 'frozen', a former top, kept by a snapshot or a
-- fork. size is NULL for what has not been measured; only 'image' layers always have one.
CREATE TABLE layers (
    id       TEXT PRIMARY KEY,
    driver   TEXT NOT NULL,
    kind     TEXT NOT NULL CHECK (kind IN ('image', 'writable', 'frozen')),
    parent   TEXT REFERENCES layers (id),
    diff_id  TEXT,
    chain_id TEXT,
    size     INTEGER,
    tar_size INTEGER,
    created  REAL NOT NULL,
    CHECK ((kind = 'image') = (chain_id IS NOT NULL AND diff_id IS NOT NULL))
) WITHOUT ROWID;
CREATE INDEX layers_parent ON layers (parent);
CREATE INDEX layers_diff_id ON layers (diff_id) WHERE diff_id IS NOT NULL;
CREATE UNIQUE INDEX layers_chain_id ON layers (driver, chain_id) WHERE chain_id IS NOT NULL;

-- The id is the digest of the configuration, which lies in blobs/.
CREATE TABLE images (
    id      TEXT PRIMARY KEY,
    created REAL NOT NULL
) WITHOUT ROWID;

-- The top layer of an image, for each driver that holds it; NULL for an image of no layers.
CREATE TABLE image_layers (
    image  TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    driver TEXT NOT NULL,
    layer  TEXT REFERENCES layers (id),
    PRIMARY KEY (image, driver)
) WITHOUT ROWID;
CREATE INDEX image_layers_layer ON image_layers (layer);

CREATE TABLE names (
    name  TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX names_image ON names (image);

-- floor: the layer that the container's changes are counted from, the image's topmost; NULL
-- for an image of no layers and for a base directory.
-- pinned: the boot in which it was mounted to stay.
CREATE TABLE containers (
    id        TEXT PRIMARY KEY,
    name      TEXT NOT NULL UNIQUE,
    driver    TEXT NOT NULL,
    layer     TEXT NOT NULL UNIQUE REFERENCES layers (id),
    floor     TEXT REFERENCES layers (id),
    image     TEXT REFERENCES images (id),
    base      BLOB,
    ephemeral INTEGER NOT NULL,
    options   TEXT NOT NULL,
    labels    TEXT NOT NULL,
    command   TEXT NOT NULL,
    created   REAL NOT NULL,
    started   REAL,
    finished  REAL,
    exit_code INTEGER,
    pinned    TEXT
) WITHOUT ROWID;
CREATE INDEX containers_image ON containers (image);
CREATE INDEX containers_floor ON containers (floor);
CREATE INDEX containers_ephemeral ON containers (id) WHERE ephemeral;

CREATE TABLE snapshots (
    container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    name      TEXT NOT NULL,
    layer     TEXT NOT NULL REFERENCES layers (id),
    created   REAL NOT NULL,
    PRIMARY KEY (container, name)
) WITHOUT ROWID;
CREATE INDEX snapshots_layer ON snapshots (layer);

-- What is on disk but belongs to nothing: not yet, or not any more. Whoever finds the lease
-- of such a row without an owner removes the thing (kind 'layer' or 'blob') and the row.
CREATE TABLE pending (
    kind   TEXT NOT NULL CHECK (kind IN ('layer', 'blob')),
    id     TEXT NOT NULL,
    driver TEXT NOT NULL,
    lease  TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;

-- Layers that a piece of work has made or found and no image refers to yet.
CREATE TABLE holds (
    work  TEXT NOT NULL,
    layer TEXT NOT NULL REFERENCES layers (id),
    lease TEXT NOT NULL,
    PRIMARY KEY (work, layer)
) WITHOUT ROWID;
CREATE INDEX holds_layer ON holds (layer);
"""

_VERSION_2 = """
-- Manifests that images came by or went out with, to the byte.
CREATE TABLE manifests (
    digest     TEXT PRIMARY KEY,
    image      TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    media_type TEXT NOT NULL,
    document   BLOB NOT NULL,
    created    REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX manifests_image ON manifests (image);

-- What the digest of an index or manifest came to on a platform, so that it need not be read
-- again.
CREATE TABLE resolved (
    digest   TEXT NOT NULL,
    platform TEXT NOT NULL,
    image    TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    PRIMARY KEY (digest, platform)
) WITHOUT ROWID;
CREATE INDEX resolved_image ON resolved (image);

-- The blobs that a layer's tar is known to be, compressed or not. recipe: how Lamina made it and
-- can make it again, NULL for what others made. kept: whether it lies in blobs/. Rows go with the
-- last layer of the DiffID.
CREATE TABLE layer_blobs (
    diff_id    TEXT NOT NULL,
    digest     TEXT NOT NULL,
    size       INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    recipe     TEXT,
    kept       INTEGER NOT NULL,
    PRIMARY KEY (diff_id, digest)
) WITHOUT ROWID;
CREATE INDEX layer_blobs_kept ON layer_blobs (digest) WHERE kept;

-- Repositories of registries in which a blob was seen: from there it need not be sent again.
CREATE TABLE locations (
    digest     TEXT NOT NULL,
    registry   TEXT NOT NULL,
    repository TEXT NOT NULL,
    seen       REAL NOT NULL,
    PRIMARY KEY (digest, registry, repository)
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_VERSION_1, _VERSION_2)
"""``MIGRATIONS[n]`` leads from version n to version n + 1 (``PRAGMA user_version``)."""
