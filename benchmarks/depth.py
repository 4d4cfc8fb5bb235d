"""What many layers cost: mounting them, and reading through the mount."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.ground import Ground
from benchmarks.measure import Line, Run, compare, timed
from lamina.archive.tar import Entry, TarWriter, Type
from lamina.drivers.erofs import ErofsDriver
from lamina.kernel import erofs, mount
from lamina.types import LayerId

LAYERS = 100
FILES = 1_000
SIZE = 8_000  # bytes of each
REPEATS = 20


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    home = ground.fresh("erofs")
    with closing(ErofsDriver(home, ground.run / home.name)) as driver:
        yield from _lines(driver, ground, rounds)


def _lines(driver: ErofsDriver, ground: Ground, rounds: int) -> Iterator[Line]:
    names = [f"directory{number % 40}/file{number}" for number in range(FILES)]
    deep = _image(driver, "deep", [names[n::LAYERS] for n in range(LAYERS)])
    flat = _image(driver, "flat", [names])
    with driver.mounted(deep):
        pass  # so that the index of the whole is there
    yield compare(
        f"get and put of an image of {LAYERS} layers, index cached",
        _mean_of(lambda: _get_and_put(driver, deep)),
        _mean_of(_Bare(driver, deep, ground).cycle),
        "the bare mount calls", limit=1.5, rounds=rounds, unit="us",
    )  # fmt: skip
    what = f"open and read {FILES:,} files of it"
    yield compare(
        f"{what}, just mounted", _first_reading(driver, deep, names),
        _first_reading(driver, flat, names), "of an image of one layer",
        limit=1.2, rounds=rounds, unit="ms",
    )  # fmt: skip
    with driver.mounted(deep) as top, driver.mounted(flat) as one:
        yield compare(
            f"{what}, again", _mean_of(partial(_read, top, names)),
            _mean_of(partial(_read, one, names)), "of an image of one layer",
            limit=1.2, rounds=rounds, unit="ms",
        )  # fmt: skip


def _mean_of(work: Callable[[], object]) -> Run:
    """Seconds for one of many in a row."""

    def all_of_them() -> None:
        for _ in range(REPEATS):
            work()

    return lambda: timed(all_of_them) / REPEATS


def _image(driver: ErofsDriver, name: str, layers: Sequence[Sequence[str]]) -> LayerId:
    """A chain of layers with these files; the topmost."""
    parent: LayerId | None = None
    for number, names in enumerate(layers):
        layer = LayerId(f"{name}-{number}")
        driver.create(layer, parent)
        driver.apply_diff(layer, parent, io.BytesIO(_tar(names)))
        parent = layer
    assert parent is not None
    return parent


def _tar(names: Sequence[str]) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    for directory in sorted({name.partition("/")[0] for name in names}):
        writer.add(Entry(directory.encode(), Type.DIRECTORY, mode=0o755))
    for name in names:
        content = (name.encode() * SIZE)[:SIZE]
        writer.add(Entry(name.encode(), mode=0o644, size=SIZE), iter((content,)))
    writer.close()
    return out.getvalue()


def _get_and_put(driver: ErofsDriver, image: LayerId) -> None:
    driver.get(image)
    driver.put(image)


class _Bare:
    """The mount of an image by its index and tars, and nothing else."""

    def __init__(self, driver: ErofsDriver, image: LayerId, ground: Ground) -> None:
        chain = driver.layout.chain(image)
        self._index = driver.layout.path(image, "chain")
        layers = reversed((image, *chain.layers))
        self._tars = [driver.layout.path(layer, "tar") for layer in layers]
        self._target = ground.fresh("bare")
        self._target.mkdir()
        assert len(self._tars) == LAYERS

    def cycle(self) -> None:
        """Mount it, and unmount it."""
        fd = erofs.open_mount(self._index, self._tars)
        mount.move_mount(fd, self._target)
        os.close(fd)
        mount.umount2(str(self._target))


def _first_reading(driver: ErofsDriver, image: LayerId, names: Sequence[str]) -> Run:
    def run() -> float:
        with driver.mounted(image) as top:
            return timed(partial(_read, top, names))

    return run


def _read(top: Path, names: Sequence[str]) -> None:
    for name in names:
        with open(f"{top}/{name}", "rb", buffering=0) as file:
            assert len(file.read()) == SIZE
