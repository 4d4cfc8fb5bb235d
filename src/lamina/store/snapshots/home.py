"""Where snapshots are kept: the directory, its one owner, its database, its driver.

    ROOT/
      lock           flock(2) LOCK_EX while somebody keeps snapshots there
      snapshots.db   see lamina.store.snapshots.schema
      reserve        room that a full disk still has (lamina.store.snapshots.reserve)
      DRIVER/        the driver's home
    RUN/DRIVER/      the driver's references

A root has one driver for good: the one that it was begun with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from lamina.drivers import Driver, registry
from lamina.errors import PermissionRequired, StoreError, printable
from lamina.kernel.lock import try_lock, unlock
from lamina.store.database import Database
from lamina.store.policy import SyncPolicy
from lamina.store.roots import default_root, default_run, is_docker_root
from lamina.store.snapshots.reserve import Reserve
from lamina.store.snapshots.schema import MIGRATIONS

_CACHE = 256
"""KiB that each thread's connection to the database caches: there may be many threads."""

_LOG_PAGES = 200
"""Of 4 KiB: what the reserve has room for when they are written back."""

_UNTELLABLE = ",:\\\n"
"""What a path in the options of a mount can't have."""


def default_home(store: Path | None = None) -> Path:
    """``containerd`` in the directory of a store, by default this user's."""
    return (store or default_root()) / "containerd"


class Home:
    """An open root. See the module.

    Raises:
        StoreError: it is another program's or another driver's, or somebody keeps it open.
        DriverUnsupported: the driver does not work here.
        PermissionRequired: this user may not write there.
    """

    def __init__(
        self,
        root: Path,
        *,
        run: Path | None = None,
        driver: str | None = None,
        options: Mapping[str, str],
        sync: SyncPolicy,
    ) -> None:
        self.root = root
        self.sync = sync
        run = run or default_run(root)
        _prepare(root, run)
        lock = try_lock(f"{root}/lock")
        if lock is None:
            raise StoreError(f"another server keeps its snapshots in {root}")
        self._lock = lock
        self.db: Database | None = None
        try:
            homes = [root / name / "layers" for name in registry.names()]
            self.db = Database(
                root / "snapshots.db",
                evidence=homes,
                migrations=MIGRATIONS,
                cache=_CACHE,
                log_pages=_LOG_PAGES,
            )
            name = self._choose(self.db, driver)
            make: Callable[..., Driver] = registry.driver_class(name)
            self.driver = make(root / name, run / name, options=options)
            self.reserve = Reserve(root / "reserve", self.db.write_back)
        except BaseException:
            self._close_files()
            raise

    def _choose(self, db: Database, wanted: str | None) -> str:
        if wanted is not None:
            registry.check_name(wanted)
        with db.read() as tx:
            begun: str | None = tx.value("SELECT value FROM settings WHERE key = 'driver'")
        if begun is not None:
            if wanted not in (None, begun):
                raise StoreError(
                    f"the snapshots in {self.root} are kept by driver {begun}, for good: "
                    "another driver takes another root"
                )
            return begun
        name = wanted or registry.choose(self.root)
        registry.driver_class(name).probe(self.root / name)
        with db.write(durable=True) as tx:
            tx.insert("settings", key="driver", value=name)
        return name

    def sync_content(self) -> None:
        """Wait until all files are on disk, if that is the policy."""
        if self.sync is SyncPolicy.LAYER:
            from lamina.kernel.copy import syncfs

            fd = os.open(self.driver.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syncfs(fd)
            finally:
                os.close(fd)

    @property
    def durable(self) -> bool:
        """Whether what is committed is to survive a power cut."""
        return self.sync is SyncPolicy.LAYER

    def close(self) -> None:
        """Let another have the root. What is mounted stays."""
        self.driver.close()
        self._close_files()

    def _close_files(self) -> None:
        if self.db is not None:
            self.db.close()
        unlock(self._lock)


def _prepare(root: Path, run: Path) -> None:
    if any(c in os.fspath(root) for c in _UNTELLABLE):
        raise StoreError(
            f"{printable(root)}: the path of snapshots must have no comma, colon or backslash, "
            "which the options of mounts can't tell"
        )
    if (docker := is_docker_root(root)) or (root / "lamina.db").exists():
        whose = "Docker" if docker else "a store of images"
        raise StoreError(
            f"{root} is kept by another, {whose}: give snapshots a directory of their own"
        )
    for path in (root, run):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except PermissionError as error:
            raise PermissionRequired(f"no permission to make {path}: use sudo") from error
        except OSError as error:
            raise StoreError(f"can't make the directory {path}: {error.strerror}") from error
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionRequired(f"no permission to write {path}: use sudo")
