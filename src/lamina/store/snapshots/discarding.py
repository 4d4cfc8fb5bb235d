"""The end of layers that no snapshot has any more.

The row goes first, the directories after, in threads beside the calls: a client need not wait for
the disk. What a crash leaves between the two is a layer without a row, which
:meth:`Discards.sweep` finds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from lamina.drivers import Driver
from lamina.errors import LayerInUse, LayerNotFound
from lamina.log import Log
from lamina.store.database import Database
from lamina.store.snapshots.reserve import Reserve
from lamina.types import LayerId

log = Log(__name__)


_THREADS = 2
_QUEUE = 256
"""Layers that may wait; who removes more does it himself, and so is slowed down."""


class Discards:
    """Removes layers, and those below them whose removal came too early."""

    def __init__(self, driver: Driver, db: Database, reserve: Reserve) -> None:
        self._driver = driver
        self._db = db
        self._reserve = reserve
        self._mutex = threading.Lock()
        self._waiting: set[LayerId] = set()  # whose children are not gone yet
        self._making: set[LayerId] = set()  # that have no row, and are to get one
        self._pool = ThreadPoolExecutor(_THREADS, "lamina-remove")
        self._queue: set[Future[bool]] = set()

    @contextmanager
    def making(self, layer: LayerId) -> Iterator[None]:
        """A layer that has no row yet is no leftover within the block."""
        with self._mutex:
            self._making.add(layer)
        try:
            yield
        finally:
            with self._mutex:
                self._making.discard(layer)

    def later(self, layer: LayerId) -> None:
        """:meth:`discard` soon, in another thread, unless too much waits already."""
        with self._mutex:
            future = None
            if len(self._queue) < _QUEUE:
                future = self._pool.submit(self._discard_aside, layer)
                self._queue.add(future)
        if future is None:
            self.discard(layer)
        else:
            future.add_done_callback(self._done)

    def drain(self) -> None:
        """Wait until all is removed that was to be, up to now."""
        with self._mutex:
            queue = set(self._queue)
        wait(queue)

    def close(self) -> None:
        """Remove what waits, and end the threads."""
        self._pool.shutdown()

    def _discard_aside(self, layer: LayerId) -> bool:
        try:
            return self.discard(layer)
        except Exception as error:
            log.error("can't remove layer %s: %s", layer, error)
            return False

    def _done(self, future: Future[bool]) -> None:
        with self._mutex:
            self._queue.discard(future)

    def discard(self, layer: LayerId) -> bool:
        """Remove a layer that has no row; whether it is gone.

        The rows of a layer and of one on it may go at once, but not the directories: what comes
        too early is removed with the last layer above it. What fails is logged, and left for
        :meth:`sweep`.
        """
        below: LayerId | None = layer
        first = True
        while below is not None and (first or self._is_waiting(below)):
            parent = self._parent(below)
            if not self._remove(below):
                return not first
            below, first = parent, False
        return True

    def sweep(self) -> int:
        """Remove all layers without a row; how many are gone."""
        self.drain()
        # In this order: a layer's row is written before the layer is made, and what has no row
        # is in _making until it has one.
        strays = set(self._driver.strays())
        there = set(self._driver.ids())
        with self._mutex:
            making = set(self._making)
        with self._db.read() as tx:
            known = {LayerId(row[0]) for row in tx.rows("SELECT layer FROM snapshots")}
        left = (there | strays) - making - known
        return sum(
            self.discard(layer) for layer in left if layer in strays or self._driver.exists(layer)
        )

    def _remove(self, layer: LayerId) -> bool:
        with self._mutex:
            self._waiting.add(layer)  # before it is tried: a child that goes now looks for it
        try:
            self._reserve.through(lambda: self._driver.release_mounts(layer))
            self._reserve.through(lambda: self._driver.remove(layer))
        except LayerInUse as error:
            log.debug("%s: it is removed later", error)
            return False
        except OSError as error:
            log.warning("can't remove layer %s now: %s", layer, error)
            return False
        with self._mutex:
            self._waiting.discard(layer)
        return True

    def _is_waiting(self, layer: LayerId) -> bool:
        with self._mutex:
            return layer in self._waiting

    def _parent(self, layer: LayerId) -> LayerId | None:
        try:
            return self._driver.parent(layer)
        except LayerNotFound:
            return None
