"""Clearing up what processes that died left in a store.

Costs what there is to clear: it looks at ``staging/``, at the lock files of containers in
use, and at three tables that are empty when all is well. The crash matrix:

    died while                      what it left                     what the sweep does
    a layer was unpacked            driver layer, pending row        removes both
    between layer and image         layer, hold                      releases the layer
      the same, of an adoption      layer, hold                      ends the hold, as it goes on
    an image was recorded           blob, pending row                removes both
    a container was made            driver layer, pending row        removes both
    something was being deleted     part of it, pending row          deletes the rest
    a container was mounted         a mount, a free lock file        unmounts
    a container was to be removed   a container, a free lock file    removes it
      at its end

A transaction that was not committed never was (SQLite). Drivers sweep their own staging.
"""

from __future__ import annotations

import os

from lamina.errors import ContainerNotFound, ContainerRunning, LaminaError
from lamina.log import Log
from lamina.store.container import Container
from lamina.store.core import Core
from lamina.store.locks import OWNER, USE, LockFile, taken
from lamina.store.records import from_row
from lamina.store.removal import discard, discard_blob
from lamina.store.work import end_work
from lamina.types import Digest, LayerId

log = Log(__name__)


def sweep(core: Core) -> None:
    """Clear up; what can't be cleared now is logged and found again by the next one."""
    with core.db.read() as tx:
        tokens = [
            row[0] for row in tx.rows("SELECT lease FROM pending UNION SELECT lease FROM holds")
        ]
    with core.leases.dead(tokens) as dead:
        for token in set(tokens).intersection(dead):
            _sweep_lease(core, token)
    for container in _abandoned(core):
        try:
            _clear_container(core, container)
        except (ContainerNotFound, ContainerRunning):
            pass  # another process was quicker
        except (LaminaError, OSError) as error:
            log.warning("container %s, left by a process that died: %s", container, error)


def _sweep_lease(core: Core, token: str) -> None:
    """Finish what bears a dead lease's token. Its rows keep that token until they are done."""
    with core.db.write() as tx:
        end_work(tx, "lease = ?", token, token)
        rows = tx.rows("SELECT kind, id, driver FROM pending WHERE lease = ?", (token,))
    for row in rows:
        if row["kind"] == "blob":
            discard_blob(core, Digest(row["id"]))
    layers = [(LayerId(row["id"]), row["driver"]) for row in rows if row["kind"] == "layer"]
    layers.sort(key=lambda layer: -_height(core, *layer))
    discard(core, layers)


def _height(core: Core, id: LayerId, driver_name: str) -> int:
    driver = core.driver_named(driver_name)
    height = 0
    at: LayerId | None = id
    while at is not None and driver.exists(at):
        at = driver.parent(at)
        height += 1
    return height


def _abandoned(core: Core) -> list[str]:
    """Containers whose lock file nobody holds, or that should have ended with their maker."""
    try:
        used = os.listdir(core.run / "containers")
    except FileNotFoundError:
        used = []
    with core.db.read() as tx:
        ephemeral = [row[0] for row in tx.rows("SELECT id FROM containers WHERE ephemeral")]
    return [id for id in {*used, *ephemeral} if not taken(core.container_lock(id), USE, OWNER)]


def _clear_container(core: Core, id: str) -> None:
    """Unmount a container whose user is dead; remove it if it was to end with its maker."""
    with core.db.read() as tx:
        row = tx.row("SELECT * FROM containers WHERE id = ?", (id,))
    if row is None:
        LockFile(core.container_lock(id)).close()  # deletes it, unless it is in use again
        return
    Container(core, from_row(row)).clear()
