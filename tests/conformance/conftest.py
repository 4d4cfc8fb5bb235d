"""The factories: how to make each driver, again and again over the same home."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamina.drivers import Driver, driver_class
from lamina.drivers.registry import names
from lamina.errors import DriverUnsupported
from lamina.kernel.idmap import IdMap
from tests import support


@dataclass(frozen=True)
class Limits:
    """What a union that is not ours can't do, whatever the driver does."""

    longest_name: int = 255
    """Bytes in the name of a file that shows through a mount."""


# aufs keeps room for a whiteout of the name, and for that whiteout's temporary name.
_LIMITS = {"kernel aufs": Limits(longest_name=242)}


@dataclass
class Factory:
    """Makes drivers over one home and one run directory."""

    name: str
    home: Path
    run: Path
    made: list[Driver] = field(default_factory=list)

    def make(self) -> Driver:
        """One more driver, as another process would have it."""
        driver = driver_class(self.name)(self.home, self.run)
        self.made.append(driver)
        return driver

    def beside(self) -> Factory:
        """A factory of the same driver over another home."""
        return Factory(self.name, self.home.with_name("beside"), self.run / "beside", self.made)

    def mapped(self, idmap: IdMap) -> Driver:
        """A driver over a home of its own, whose owners are mapped."""
        home = self.home.with_name("mapped")
        driver = driver_class(self.name)(home, self.run / "mapped", idmap=idmap)
        self.made.append(driver)
        return driver

    def close(self) -> None:
        """Unmount everything."""
        for driver in self.made:
            driver.cleanup()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver_name" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--driver") or names()
        metafunc.parametrize("driver_name", chosen)


@pytest.fixture
def factory(driver_name: str, tmp_path: Path) -> Iterator[Factory]:
    if not support.is_root():
        support.missing("needs root: layers are made with any owner")
    home = tmp_path / driver_name
    try:
        driver_class(driver_name).probe(home)
    except DriverUnsupported as error:
        support.missing(str(error))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as run:
        made = Factory(driver_name, home, Path(run))
        with contextlib.closing(made):
            yield made


@pytest.fixture
def driver(factory: Factory) -> Driver:
    return factory.make()


@pytest.fixture
def limits(driver: Driver) -> Limits:
    union = dict(driver.status()).get("Union", "")
    return next((found for name, found in _LIMITS.items() if union.startswith(name)), Limits())


@pytest.fixture
def write(driver: Driver) -> Callable[[str, dict[str, str | None]], None]:
    """Write files into a layer through its mount; None deletes."""

    def write(id: str, files: dict[str, str | None]) -> None:
        from lamina.types import LayerId

        with driver.mounted(LayerId(id)) as root:
            for name, content in files.items():
                path = root / name
                if content is None:
                    path.unlink()
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(content)

    return write
