"""What changed in a container with ten changed files, and that as a tar."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import inputs
from benchmarks.ground import Ground
from benchmarks.measure import Line, Run, compare, in_turn, timed
from lamina.drivers import naive
from lamina.drivers.overlay import OverlayDriver
from lamina.types import LayerId

CHANGED = 10
SMALL, LARGE = 1_000, 100_000
IN_DIRECTORY = 100
REPEATS = 20

IMAGE, BOX = LayerId("image"), LayerId("box")


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    small, large = (_with_files(ground, count) for count in (SMALL, LARGE))
    for what, work in (("changes", _changes), ("diff", _diff)):
        yield compare(
            f"{what} of {CHANGED} files on an image of {LARGE:,}", _mean_of(work, large),
            _mean_of(work, small), f"on {SMALL:,}", limit=1.2, rounds=rounds, unit="us",
        )  # fmt: skip
    debian = _with_debian(ground)
    for what, work, slow in (
        ("changes", _changes, _naive_changes),
        ("diff", _diff, _naive_diff),
    ):
        times = in_turn(rounds, ours=_mean_of(work, debian), peer=_mean_of(slow, debian, 1))
        ours, peer = (statistics.median(times[name]) * 1e3 for name in ("ours", "peer"))
        yield Line(
            f"{what} of {CHANGED} files on the Debian root", ours, peer,
            "by comparing two mounted trees", peer / ours, 20, "at least", "ms",
            "x faster", times,
        )  # fmt: skip


def _changes(driver: OverlayDriver) -> None:
    assert sum(change.kind == "C" for change in driver.changes(BOX, IMAGE)) >= CHANGED


def _diff(driver: OverlayDriver) -> None:
    with driver.diff(BOX, IMAGE) as stream:
        while stream.read(1 << 20):
            pass


def _naive_changes(driver: OverlayDriver) -> None:
    assert len(naive.changes(driver, BOX, IMAGE)) == len(driver.changes(BOX, IMAGE))


def _naive_diff(driver: OverlayDriver) -> None:
    with naive.diff(driver, BOX, IMAGE) as stream:
        while stream.read(1 << 20):
            pass


def _mean_of(
    work: Callable[[OverlayDriver], None], driver: OverlayDriver, repeats: int = REPEATS
) -> Run:
    def all_of_it() -> None:
        for _ in range(repeats):
            work(driver)

    return lambda: timed(all_of_it) / repeats


def _driver(ground: Ground) -> OverlayDriver:
    home = ground.fresh("overlay")
    driver = OverlayDriver(home, ground.run / home.name)
    driver.create(IMAGE)
    return driver


def _with_files(ground: Ground, count: int) -> OverlayDriver:
    """An image of ``count`` files, and a container that changed some."""
    driver = _driver(ground)
    top = Path(driver.metadata(IMAGE)["UpperDir"])
    for number in range(count // IN_DIRECTORY):
        directory = top / f"directory{number}"
        directory.mkdir()
        for name in range(IN_DIRECTORY):
            (directory / f"file{name}").write_text("content\n")
    _change(driver, [Path(f"directory{number}/file{number}") for number in range(CHANGED)])
    return driver


def _with_debian(ground: Ground) -> OverlayDriver:
    """The Debian root, and a container that changed some of it."""
    driver = _driver(ground)
    with inputs.root().tar.open("rb") as stream:
        driver.apply_diff(IMAGE, None, stream)
    etc = Path(driver.metadata(IMAGE)["UpperDir"]) / "etc"
    files = sorted(path.name for path in etc.iterdir() if path.is_file() and not path.is_symlink())
    _change(driver, [Path("etc") / name for name in files[:CHANGED]])
    return driver


def _change(driver: OverlayDriver, paths: list[Path]) -> None:
    assert len(paths) == CHANGED
    driver.create_read_write(BOX, IMAGE)
    with driver.mounted(BOX) as root:
        for path in paths:
            with (root / path).open("a") as file:
                file.write("changed\n")
