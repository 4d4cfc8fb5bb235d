"""Making a layer of any kind: on disk and in the tables, or in neither."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamina.store.core import Core
from lamina.store.database import Transaction, Value
from lamina.store.names import new_id
from lamina.store.removal import discard
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.drivers import Driver


class Making:
    """A layer that the driver has and the tables have not yet."""

    def __init__(self, id: LayerId, driver: str) -> None:
        self.id = id
        self.driver = driver
        self.recorded = False

    def record(
        self, tx: Transaction, *, kind: str, parent: LayerId | None, **values: Value
    ) -> None:
        """Put the layer into the tables; it is there when the transaction is committed."""
        values = {"created": time.time()} | values | {"id": self.id, "driver": self.driver}
        tx.insert("layers", kind=kind, parent=parent, **values)
        tx.run("DELETE FROM pending WHERE kind = 'layer' AND id = ?", (self.id,))
        self.recorded = True


@contextmanager
def making(core: Core, make: Callable[[Driver, LayerId], None]) -> Iterator[Making]:
    """A new layer, made by ``make``; after the block it is gone unless it was recorded."""
    driver = core.driver
    made = Making(LayerId(new_id()), driver.name)
    with core.db.write() as tx:
        tx.insert("pending", kind="layer", id=made.id, driver=made.driver, lease=core.leases.token)
    try:
        with core.writing():
            make(driver, made.id)
            yield made
    except BaseException:
        if not _is_recorded(core, made.id):
            discard(core, [(made.id, made.driver)])
        raise
    if not made.recorded:
        discard(core, [(made.id, made.driver)])


def _is_recorded(core: Core, id: LayerId) -> bool:
    """Asks the table: a transaction may have been rolled back, or have come before the error."""
    with core.db.read() as tx:
        return bool(tx.value("SELECT 1 FROM layers WHERE id = ?", (id,)))
