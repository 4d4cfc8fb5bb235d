"""A piece of work on layers: what it has made or found stays until it ends."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from lamina.errors import LaminaError
from lamina.store.core import Core
from lamina.store.database import Transaction
from lamina.store.removal import Doomed, discard, release
from lamina.types import LayerId

_RESUMED = "-resumed"
"""The end of the names of such work."""


class Work:
    """Holds layers that no image refers to yet; a context manager.

    At its end every layer that still nothing refers to is removed: so an import that fails
    after its third layer leaves none of the three. Should the process die, the next one that
    opens the store ends the work (:mod:`lamina.store.sweep`).

    Work that is ``resumed`` by doing it again leaves its layers, which are found by their chain
    ids then, when it is interrupted: by a signal, a full disk, the death of the process. Those
    that nobody comes back for :meth:`~lamina.Store.prune` removes.
    """

    def __init__(self, core: Core, *, resumed: bool = False) -> None:
        self._core = core
        self._resumed = resumed
        self._id = os.urandom(8).hex() + _RESUMED * resumed

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
            interrupted = error is not None and not isinstance(error, LaminaError)
            keep = self._resumed and interrupted
            doomed = end_work(tx, "work = ?", self._id, self._core.leases.token, keep=keep)
        discard(self._core, doomed)


def end_work(
    tx: Transaction, condition: str, value: str, lease: str, *, keep: bool | None = None
) -> list[Doomed]:
    """Drop the holds that meet the condition, and release what they held unless it is to ``keep``.

    None: as becomes a process that died, what is resumed is kept.
    """
    held = tx.rows(f"SELECT work, layer FROM holds WHERE {condition}", (value,))
    tx.run(f"DELETE FROM holds WHERE {condition}", (value,))
    return [
        gone
        for work, layer in held
        if not (work.endswith(_RESUMED) if keep is None else keep)
        for gone in release(tx, layer, lease)
    ]
