"""Snapshotters to be tested: in process, and behind a socket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamina.drivers.registry import driver_class
from lamina.errors import DriverUnsupported
from lamina.serve.containerd.server import Options, running
from lamina.store.policy import SyncPolicy
from lamina.store.snapshots import Snapshots
from tests import support
from tests.serve.containerd.client import Client, Snapshotter

DRIVERS = ("erofs", "overlay", "vfs", "aufs")


@dataclass
class Ground:
    """Where a snapshotter keeps its things, and how it is made."""

    root: Path
    run: Path
    driver: str
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def socket(self) -> Path:
        return self.run / "s.sock"

    def open(self) -> Snapshots:
        return Snapshots(self.root, run=self.run / "refs", driver=self.driver, sync=SyncPolicy.NONE)

    @contextmanager
    def served(self, store: Snapshots) -> Iterator[Client]:
        with running(store, Options(self.socket)):
            client = Client(self.socket)
            try:
                yield client
            finally:
                client.close()

    def end(self) -> None:
        """Let go of mounts that a driver keeps on purpose."""
        with self.open() as store:
            for id in list(store.driver.ids()):
                store.driver.release_mounts(id)
            store.driver.cleanup()


@pytest.fixture(params=DRIVERS)
def driver_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    chosen = request.config.getoption("--driver")
    if chosen and name not in chosen:
        pytest.skip("another driver was asked for")
    return name


@pytest.fixture
def ground(driver_name: str, tmp_path: Path) -> Iterator[Ground]:
    if not support.is_root():
        support.missing("needs root (with the right to mount)")
    try:
        driver_class(driver_name).probe(tmp_path)
    except DriverUnsupported as error:
        support.missing(str(error))
    with tempfile.TemporaryDirectory(prefix="lamina-", dir="/dev/shm") as run:
        made = Ground(tmp_path / "root", Path(run), driver_name)
        try:
            yield made
        finally:
            made.end()


@pytest.fixture
def store(ground: Ground) -> Iterator[Snapshots]:
    with ground.open() as made:
        yield made


@pytest.fixture(params=["in process", "socket"])
def snapshotter(
    request: pytest.FixtureRequest, ground: Ground, store: Snapshots
) -> Iterator[Snapshotter]:
    if request.param == "in process":
        yield store
        return
    with ground.served(store) as client:
        yield client
