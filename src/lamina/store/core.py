"""What the parts of an open store share: its directories, database, lease and drivers."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.drivers import registry
from lamina.drivers.base import check_options
from lamina.errors import FULL, StoreError
from lamina.log import Log
from lamina.store.blobs import Blobs
from lamina.store.database import Database, Transaction
from lamina.store.leases import Leases
from lamina.store.policy import SyncPolicy
from lamina.store.roots import prepare
from lamina.store.splits import Splits

if TYPE_CHECKING:
    from lamina.drivers import Driver
    from lamina.progress import ProgressCallback
    from lamina.store.running import Runner

log = Log(__name__)


class Core:
    """An open store without the calls that users make. See :class:`lamina.store.Store`."""

    def __init__(
        self,
        root: Path,
        run: Path,
        *,
        driver: str | None,
        options: Mapping[str, str],
        sync: SyncPolicy,
        progress: ProgressCallback | None,
        runner: Runner | None,
    ) -> None:
        if driver is not None:
            registry.check_name(driver)
            if options:
                known = getattr(registry.driver_class(driver), "known_options", frozenset(options))
                check_options(driver, options, known)
        prepare(root, run)
        self.root = root
        self.run = run
        self.sync = sync
        self.progress = progress
        self.runner = runner
        self.leases = Leases(root / "staging")
        self.blobs = Blobs(root / "blobs")
        self.splits = Splits(root / "tar-split")
        self.db = Database(root / "lamina.db", evidence=(self.blobs.home, self.splits.home))
        self._wanted = driver
        self.driver_because = "it was asked for" if driver else "it is the best that works here"
        """Why new layers are :attr:`driver_name`'s, for a person."""
        self._options = options
        self._mutex = threading.Lock()
        self._drivers: dict[str, Driver] = {}

    @property
    def driver_name(self) -> str:
        """The driver for new layers: the one asked for, else the store's own, else
        :func:`registry.choose`'s, which is the store's own from then on."""
        with self._mutex:
            if self._wanted is None:
                self._wanted = registry.choose(self.root)
            return self._wanted

    def remember_driver(self) -> None:
        """Unless a driver was asked for, take the store's own; at the opening, once."""
        if self._wanted is None:
            with self.db.read() as tx:
                self._wanted = own_driver(tx)
            if self._wanted is not None:
                self.driver_because = "it is the store's own"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around what writes much to the store: a full disk's error says what to do about it."""
        try:
            yield
        except OSError as error:
            note = (
                f"the disk of the store {self.root} is full: 'lamina du' shows what takes room "
                "in it, 'lamina prune' makes some, --root DIR is a store elsewhere"
            )
            if error.errno in FULL and note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise

    def on(self, driver: str) -> Core:
        """The same open store, with another driver for new layers; closed with this one."""
        other = copy.copy(self)
        other._options = self._options if driver == self._wanted else {}
        other._wanted = driver
        return other

    @property
    def driver(self) -> Driver:
        """The driver for new layers; opened when first used."""
        return self.driver_named(self.driver_name)

    def driver_named(self, name: str) -> Driver:
        """One of the drivers that keep layers in this store; a root may have several.

        Raises :class:`StoreError` where others keep theirs in its place.
        """
        with self._mutex:
            driver = self._drivers.get(name)
            if driver is None:
                if not self._claim(name):
                    raise StoreError(
                        f"{self.root / name} has layers that this store did not make "
                        "(did Docker, or was the store's database lost?): they are left alone; "
                        "move them away, or use another driver"
                    )
                options = self._options if name == self._wanted else {}
                make: Callable[..., Driver] = registry.driver_class(name)
                driver = make(self.root / name, self.run / name, options=options)
                self._drivers[name] = driver
            return driver

    def is_foreign(self, name: str) -> bool:
        """Whether the driver's home has layers that this store did not make."""
        with self._mutex:
            return name not in self._drivers and not self._claim(name)

    def _claim(self, name: str) -> bool:
        """Note that a driver's home is this store's; false if it has layers of someone else's.

        The disk is looked at first: whoever makes a layer there has noted it before.
        """
        empty = _is_empty(self.root / name / "layers")
        key = (f"home {name}",)
        with self.db.read() as tx:
            if tx.value("SELECT 1 FROM settings WHERE key = ?", key):
                return True
            used = tx.value(
                "SELECT EXISTS (SELECT 1 FROM layers WHERE driver = ?1)"
                " OR EXISTS (SELECT 1 FROM pending WHERE driver = ?1)",
                (name,),
            )
        if not empty and not used:
            return False
        with self.db.write() as tx:
            if name == self._wanted and own_driver(tx) is None:
                set_own_driver(tx, name)
            tx.run("INSERT OR IGNORE INTO settings VALUES (?, 'begun')", key)
        return True

    def require_driver(self, name: str, what: str) -> None:
        """Raise :class:`StoreError` unless ``name`` is the driver for new layers."""
        if name != self.driver_name:
            raise StoreError(
                f"{what} is kept by driver {name}, this store was opened with "
                f"{self.driver_name}: use --driver {name}"
            )

    def container_lock(self, container: str) -> Path:
        """The lock file of a container (:mod:`lamina.store.locks`)."""
        return self.run / "containers" / container

    def sync_content(self) -> None:
        """Wait until all files of the store are on disk, if its policy says so."""
        if self.sync is SyncPolicy.LAYER:
            from lamina.kernel.copy import syncfs

            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syncfs(fd)
            finally:
                os.close(fd)

    @property
    def durable(self) -> bool:
        """Whether a transaction about layers and images is to be synced."""
        return self.sync is SyncPolicy.LAYER

    def close(self) -> None:
        """Unmount what is mounted through this store alone, close the database, end the lease."""
        with self._mutex:
            drivers, self._drivers = self._drivers, {}
        for driver in drivers.values():
            try:
                driver.cleanup()
            except OSError as error:
                log.warning("a mount stays: %s", error)
        self.leases.close()
        self.db.close()


def own_driver(tx: Transaction) -> str | None:
    """The driver that a store is opened with unless another is asked for; None in a new store.

    Stores of before that was recorded: the one with the most layers.
    """
    recorded: str | None = tx.value("SELECT value FROM settings WHERE key = 'driver'")
    return recorded or tx.value(
        "SELECT driver FROM layers GROUP BY driver ORDER BY count(*) DESC, driver LIMIT 1"
    )


def set_own_driver(tx: Transaction, name: str) -> None:
    """Let the store be opened with this driver from now on."""
    tx.run("INSERT OR REPLACE INTO settings VALUES ('driver', ?)", (name,))


def _is_empty(directory: Path) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    except (FileNotFoundError, NotADirectoryError):
        return True
