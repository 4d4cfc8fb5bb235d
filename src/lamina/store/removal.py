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

Doomed = tuple[LayerId, str]
"""A layer that is in the tables no more but may be on disk, and its driver."""


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
        row = tx.row("SELECT driver, parent FROM layers WHERE id = ?", (layer,))
        if row is None:
            break
        tx.run("DELETE FROM layers WHERE id = ?", (layer,))
        tx.insert("pending", kind="layer", id=layer, driver=row["driver"], lease=lease)
        doomed.append((layer, row["driver"]))
        layer = row["parent"] if below else None
    return doomed


def discard(core: Core, doomed: Iterable[Doomed]) -> None:
    """Delete layers from the disk, each before the one below it. No lock is held.

    One that can't go now (mounted by a process that knows nothing of the store) stays in
    ``pending`` for a later sweep; that is logged and is no error.
    """
    gone = [(layer,) for layer, driver in doomed if _delete(core, layer, driver)]
    if gone:
        with core.db.write() as tx:
            tx.run_all("DELETE FROM pending WHERE kind = 'layer' AND id = ?", gone)


def discard_blob(core: Core, digest: Digest) -> None:
    """Delete a pending image configuration, unless an image of that id came to be meanwhile.

    The deletion of the one small file is within the transaction: an image of the same id is
    made in one too, so that either sees what the other did.
    """
    with core.db.write() as tx:
        if not tx.value("SELECT 1 FROM images WHERE id = ?", (digest,)):
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
