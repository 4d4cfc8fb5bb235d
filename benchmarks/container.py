"""A container's life, from making its layer to removing it, on an image of 20 layers."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.ground import Ground
from benchmarks.measure import Line, compare
from lamina.drivers.overlay import OverlayDriver
from lamina.kernel import mount
from lamina.types import LayerId

LAYERS = 20
MANY = 10_000
REPEATS = 50


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    small = _driver(ground)
    image = _image(small, "image")
    bare = _mean_of(_Bare(small, image, ground.fresh("bare")).life)
    yield compare(
        f"create + get + put + remove on {LAYERS} layers", _mean_of(_life(small, image)), bare,
        "the bare system calls", limit=3, rounds=rounds, unit="us",
    )  # fmt: skip
    large = _driver(ground)
    for number in range(MANY // LAYERS - 1):
        _image(large, f"other{number}")
    crowded = _image(large, "image")
    yield compare(
        f"the same among {MANY:,} layers", _mean_of(_life(large, crowded)),
        _mean_of(_life(small, image)), f"among {LAYERS}", limit=1.2, rounds=rounds, unit="us",
    )  # fmt: skip


def _mean_of(life: Callable[[], None]) -> Callable[[], float]:
    """Seconds for one life, as the mean of many in a row."""

    def run() -> float:
        os.sync()
        start = time.perf_counter()
        for _ in range(REPEATS):
            life()
        return (time.perf_counter() - start) / REPEATS

    return run


def _driver(ground: Ground) -> OverlayDriver:
    home = ground.fresh("overlay")
    return OverlayDriver(home, ground.run / home.name)


def _image(driver: OverlayDriver, name: str) -> LayerId:
    """A chain of layers with a file in each; the topmost."""
    parent: LayerId | None = None
    for number in range(LAYERS):
        layer = LayerId(f"{name}-{number}")
        driver.create(layer, parent)
        (Path(driver.metadata(layer)["UpperDir"]) / f"file{number}").touch()
        parent = layer
    assert parent is not None
    return parent


def _life(driver: OverlayDriver, image: LayerId) -> Callable[[], None]:
    serial = itertools.count()

    def life() -> None:
        box = LayerId(f"box{next(serial)}")
        driver.create_read_write(box, image)
        driver.get(box)
        driver.put(box)
        driver.remove(box)

    return life


class _Bare:
    """The same directories, mount and removals, by system calls one after the other."""

    def __init__(self, driver: OverlayDriver, image: LayerId, home: Path) -> None:
        self._lowers = [str(Path(driver.metadata(image)["UpperDir"]))]
        self._lowers += driver.metadata(image)["LowerDir"].split(":")
        self._home = str(home)
        self._parents = "".join(f"{lower}\n" for lower in self._lowers)
        os.mkdir(home)
        assert len(self._lowers) == LAYERS

    def life(self) -> None:
        """One container's."""
        top = f"{self._home}/box"
        diff, work, merged = f"{top}/diff", f"{top}/work", f"{top}/merged"
        for path in (top, diff, work, merged):
            os.mkdir(path)
        with open(f"{top}/parents", "w") as file:
            file.write(self._parents)
        self._mount(diff, work, merged)
        mount.umount2(merged)
        os.unlink(f"{top}/parents")
        for path in (merged, f"{work}/work", work, diff, top):
            os.rmdir(path)

    def _mount(self, upper: str, work: str, target: str) -> None:
        context = mount.fsopen("overlay")
        mount.fsconfig_string(context, "source", "overlay")
        mount.fsconfig_string(context, "index", "off")
        for key, path in (
            ("upperdir", upper),
            ("workdir", work),
            *(("lowerdir+", lower) for lower in self._lowers),
        ):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            mount.fsconfig_fd(context, key, fd)
            os.close(fd)
        mount.fsconfig_create(context)
        tree = mount.fsmount(context)
        mount.move_mount(tree, target)
        os.close(tree)
        os.close(context)
