"""A piece of work on layers: what it has made or found stays until it ends."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from lamina.store.core import Core
from lamina.store.database import Transaction
from lamina.store.removal import Doomed, discard, release
from lamina.types import LayerId


class Work:
    """Holds layers that no image refers to yet; a context manager.

    At its end every layer that still nothing refers to is removed: so an import that fails
    after its third layer leaves none of the three. Should the process die, the next one that
    opens the store ends the work (:mod:`lamina.store.sweep`).
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._id = os.urandom(8).hex()

    def hold(self, tx: Transaction, layer: LayerId) -> None:
        """Keep a layer until the work ends."""
        tx.run(
            "INSERT OR IGNORE INTO holds (work, layer, lease) VALUES (?, ?, ?)",
            (self._id, layer, self._core.leases.token),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._core.db.write() as tx:
            doomed = end_work(tx, "work = ?", self._id, self._core.leases.token)
        discard(self._core, doomed)


def end_work(tx: Transaction, condition: str, value: str, lease: str) -> list[Doomed]:
    """Drop the holds that meet the condition, and release what they held."""
    held = [row[0] for row in tx.rows(f"SELECT layer FROM holds WHERE {condition}", (value,))]
    tx.run(f"DELETE FROM holds WHERE {condition}", (value,))
    return [gone for layer in held for gone in release(tx, layer, lease)]
