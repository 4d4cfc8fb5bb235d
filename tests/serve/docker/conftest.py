"""Plugins: in this process for the conformance suite, as a process of its own for all else."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamina.drivers import Driver, driver_class
from lamina.drivers.homes import Homes
from lamina.drivers.registry import names
from lamina.errors import DriverUnsupported
from lamina.kernel.idmap import IdMap
from tests import support
from tests.conformance.conftest import limits, write
from tests.serve.docker.plugin import Client, Plugin, running
from tests.serve.docker.remote import Remote

__all__ = ["limits", "write"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver_name" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--driver")
        meant = getattr(metafunc.module, "DRIVERS", names())
        chosen = [name for name in meant if name in wanted or not wanted]
        metafunc.parametrize("driver_name", chosen)


@pytest.fixture
def works(driver_name: str, tmp_path: Path) -> str:
    """The name of a driver that works here."""
    if not support.is_root():
        support.missing("needs root (with the right to mount)")
    try:
        driver_class(driver_name).probe(tmp_path)
    except DriverUnsupported as error:
        support.missing(str(error))
    return driver_name


@pytest.fixture
def run() -> Iterator[Path]:
    """A run directory, on a tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as run:
        yield Path(run)


@pytest.fixture
def address() -> Iterator[Path]:
    """Where a socket may be: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="lamina-tests-", dir="/run") as directory:
        yield Path(directory, "lamina.sock")


# -- the conformance suite


@dataclass
class Factory:
    """As :class:`tests.conformance.conftest.Factory`, over a socket."""

    client: Client
    name: str
    home: Path
    run: Path
    made: list[Driver] = field(default_factory=list)

    def make(self) -> Driver:
        return Remote(self.client, self.name, self.home, self.run)

    def beside(self) -> Factory:
        pytest.skip("one home at a time is asked for new layers")

    def mapped(self, idmap: IdMap) -> Driver:
        return Remote(self.client, self.name, self.home.with_name("mapped"), self.run, idmap)


@pytest.fixture
def factory(works: str, tmp_path: Path, run: Path, address: Path) -> Iterator[Factory]:
    from lamina.serve import sockets
    from lamina.serve.docker.server import Server

    homes = Homes(tmp_path / "state.json", run)
    listening = sockets.listen(address)
    ready = threading.Event()
    server = Server(homes, frozenset({"lamina"}), ready=ready.set, patience=5)
    thread = threading.Thread(target=server.serve_on, args=([listening],))
    thread.start()
    try:
        assert ready.wait(10)
        yield Factory(Client(address), works, tmp_path / works, run)
    finally:
        server.stop()
        thread.join()
        listening.close()
        for driver in homes.drivers():
            driver.cleanup(pins=True)
        homes.close()


@pytest.fixture
def driver(factory: Factory) -> Driver:
    return factory.make()


# -- a plugin as a process


@pytest.fixture
def stopped(address: Path, tmp_path: Path, run: Path) -> Iterator[Plugin]:
    """A plugin that is to be started by the test."""
    plugin = Plugin(address, tmp_path, run)
    try:
        yield plugin
    finally:
        plugin.kill()


@pytest.fixture
def plugin(works: str, address: Path, tmp_path: Path, run: Path) -> Iterator[Plugin]:
    """A plugin that runs, with a home."""
    with running(address, tmp_path, run, "--driver", works) as plugin:
        plugin.call("GraphDriver.Init", Home=os.fspath(tmp_path / "home"), Opts=None)
        try:
            yield plugin
        finally:
            if plugin.process is None:
                plugin.start()
            plugin.call("GraphDriver.Cleanup")
