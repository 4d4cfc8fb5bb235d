"""How layers go: out of the tables first, off the disk after."""

from __future__ import annotations

from collections.abc import Iterable

from lamina.errors import LayerInUse
from lamina.log import Log
from lamina.store.core import Core
from lamina.store.database import Transaction
from lamina.types import Digest, LayerId

log = Log(__name__)

_REFERRED = """
SELECT EXISTS (SELECT 1 FROM layers WHERE parent = :id)
    OR EXISTS (SELECT 1 FROM image_layers WHERE layer = :id)
    OR EXISTS (SELECT 1 FROM containers WHERE layer = :id)
    OR EXISTS (SELECT 1 FROM snapshots WHERE layer = :id)
    OR EXISTS (SELECT 1 FROM holds WHERE layer = :id)
""".replace(":id", "?1")

_BLOB_NEEDED = """
SELECT EXISTS (SELECT 1 FROM images WHERE id = ?1)
    OR EXISTS (SELECT 1 FROM layer_blobs WHERE digest = ?1 AND kept)
"""

Doomed = tuple[str, str]
"""What is in the tables no more but may be on disk: a layer and its driver, or a blob and ``""``;
as in the table ``pending``."""


def release(
    tx: Transaction, layer: LayerId | None, lease: str, *, below: bool = True
) -> list[Doomed]:
    """Take a layer that nothing refers to, and those below it, out of the tables.

    Stops at the first that is referred to, or, without ``below``, after the first. Hand the
    result to :func:`discard` after the transaction; should this process die before that, the
    rows in ``pending`` tell.
    """
    doomed: list[Doomed] = []
    while layer is not None and not tx.value(_REFERRED, (layer,)):
        row = tx.row("SELECT driver, parent, diff_id FROM layers WHERE id = ?", (layer,))
        if row is None:
            break
        tx.run("DELETE FROM layers WHERE id = ?", (layer,))
        tx.insert("pending", kind="layer", id=layer, driver=row["driver"], lease=lease)
        doomed.append((layer, row["driver"]))
        doomed += _release_blobs(tx, row["diff_id"], lease)
        layer = row["parent"] if below else None
    return doomed


def _release_blobs(tx: Transaction, diff_id: str | None, lease: str) -> list[Doomed]:
    """Forget the blobs of a tar that no layer is made of any more; those that were kept."""
    if diff_id is None or tx.value("SELECT 1 FROM layers WHERE diff_id = ?", (diff_id,)):
        return []
    rows = tx.rows("SELECT digest FROM layer_blobs WHERE diff_id = ? AND kept", (diff_id,))
    tx.run(
        "DELETE FROM locations WHERE digest IN (SELECT digest FROM layer_blobs WHERE diff_id = ?)",
        (diff_id,),
    )
    tx.run("DELETE FROM layer_blobs WHERE diff_id = ?", (diff_id,))
    for row in rows:
        doom_blob(tx, row["digest"], lease)
    return [(row["digest"], "") for row in rows]


def doom_blob(tx: Transaction, digest: Digest, lease: str) -> None:
    """Mark a blob as belonging to nothing: not yet, or no more."""
    tx.run("INSERT OR REPLACE INTO pending VALUES ('blob', ?, '', ?)", (digest, lease))


def discard(core: Core, doomed: Iterable[Doomed]) -> None:
    """Delete layers and blobs from the disk, each before the one below it. No lock is held.

    One that can't go now (mounted by a process that knows nothing of the store) stays in
    ``pending`` for a later sweep; that is logged and is no error.
    """
    doomed = list(doomed)
    gone = [(id,) for id, driver in doomed if driver and _delete(core, LayerId(id), driver)]
    for id, driver in doomed:
        if not driver:
            discard_blob(core, Digest(id))
    if gone:
        with core.db.write() as tx:
            tx.run_all("DELETE FROM pending WHERE kind = 'layer' AND id = ?", gone)


def discard_blob(core: Core, digest: Digest) -> None:
    """Delete a pending blob, unless something that needs it came to be meanwhile.

    The deletion of the one file is within the transaction: what needs a blob is recorded in one
    too, so that either sees what the other did.
    """
    with core.db.write() as tx:
        if not tx.value(_BLOB_NEEDED, (digest,)):
            core.blobs.remove(digest)
        tx.run("DELETE FROM pending WHERE kind = 'blob' AND id = ?", (digest,))


def _delete(core: Core, layer: LayerId, driver: str) -> bool:
    try:
        core.driver_named(driver).remove(layer)
        core.splits.remove(layer)
    except (LayerInUse, OSError) as error:
        log.warning("layer %s stays for now: %s", layer, error)
        return False
    return True
