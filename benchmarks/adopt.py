"""What Docker left on AUFS: taking it over, and what changed in a layer, by the AUFS way."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import daemons, inputs
from benchmarks.ground import Ground, tool
from benchmarks.measure import Line, Run, compare, in_turn, timed
from lamina.archive import whiteout
from lamina.archive.split import SplitRecorder
from lamina.archive.tar import TarReader
from lamina.archive.unpack import unpack
from lamina.drivers import naive
from lamina.drivers.aufs import AufsDriver
from lamina.oci import ImageConfig
from lamina.oci.digest import sha256
from lamina.types import DiffId, LayerId

NAME = "bench/debian:1"
CHANGED = 10
REPEATS = 20
IMAGE, BOX = LayerId("image"), LayerId("box")

_BRANCH = "a" * 64


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    root = ground.fresh("docker-aufs")
    make_root(root, inputs.root())
    with ExitStack() as stack:
        socket = stack.enter_context(daemons.containerd(ground))
        client = stack.enter_context(daemons.dockerd(ground, socket))
        tool(daemons.docker_client(), "import", inputs.root().tar, NAME, env=client)
        version, _ = daemons.versions()
        for what, options, limit in (
            ("adoption of a Docker root, by hard links", (), 0.3),
            ("adoption of a Docker root, by copies", ("--copy",), None),
        ):
            yield compare(
                what, _adopt(ground, root, *options), _save_and_load(ground, client),
                f"{version} save, load", limit=limit, rounds=rounds,
            )  # fmt: skip
    yield from _differences(ground, rounds)


# -- adoption


def make_root(root: Path, image: inputs.Root) -> None:
    """A Docker root of storage driver aufs with one image of one layer, as Docker writes it."""
    at = root / "image/aufs/layerdb" / image.diff_id.replace(":", "/")
    directory = root / "aufs/diff" / _BRANCH
    for path in (
        directory, at, root / "aufs/layers", root / "aufs/mnt" / _BRANCH, root / "containers",
        root / "image/aufs/imagedb/content/sha256", root / "image/aufs/imagedb/metadata/sha256",
    ):  # fmt: skip
        path.mkdir(parents=True)
    (root / "aufs/layers" / _BRANCH).touch()
    scratch = root / "scratch"
    scratch.mkdir()
    with (
        image.tar.open("rb") as tar,
        (at / "tar-split.json.gz").open("wb") as sink,
        SplitRecorder(sink, scratch=scratch) as recorder,
    ):
        done = unpack(TarReader(tar, observer=recorder), directory, fmt=whiteout.AUFS)
        recorder.finish()
    shutil.rmtree(scratch)
    for name, text in (("cache-id", _BRANCH), ("diff", image.diff_id), ("size", str(done.size))):
        (at / name).write_text(text)
    config = ImageConfig.for_this_machine()
    config.rootfs.diff_ids = [DiffId(image.diff_id)]
    data = config.encode()
    id = sha256(data)
    (root / "image/aufs/imagedb/content" / id.replace(":", "/")).write_bytes(data)
    names = {"Repositories": {"bench/debian": {NAME: id}}}
    (root / "image/aufs/repositories.json").write_text(json.dumps(names))


def _adopt(ground: Ground, root: Path, *options: str) -> Run:
    """The command, into a new store."""

    def run() -> float:
        store = ground.fresh("store")
        argv: list[str | Path] = [
            sys.executable, "-m", "lamina", "--root", store, "--run-root", ground.run / store.name,
            "--driver", "overlay", "adopt", root, "--bring", *options,
        ]  # fmt: skip
        seconds = timed(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL))
        shutil.rmtree(store)
        return seconds

    return run


def _save_and_load(ground: Ground, env: dict[str, str]) -> Run:
    """The way that Docker's documentation has for another storage driver."""
    client = daemons.docker_client()

    def run() -> float:
        archive = ground.fresh("saved")
        seconds = timed(lambda: tool(client, "save", "-o", archive, NAME, env=env))
        tool(client, "rmi", NAME, env=env)
        seconds += timed(lambda: tool(client, "load", "-i", archive, env=env))
        archive.unlink()
        return seconds

    return run


# -- differences


def _differences(ground: Ground, rounds: int) -> Iterator[Line]:
    """Changes and Diff of a container with ten changed files, natively and by comparing trees."""
    home = ground.fresh("aufs")
    driver = AufsDriver(home, ground.run / home.name)
    try:
        driver.create(IMAGE)
        with inputs.root().tar.open("rb") as stream:
            driver.apply_diff(IMAGE, None, stream)
        driver.create_read_write(BOX, IMAGE)
        with driver.mounted(BOX) as root:
            files = (path for path in sorted((root / "etc").iterdir()) if path.is_file())
            for path in itertools.islice(files, CHANGED):
                with path.open("a") as file:
                    file.write("changed\n")
        for what, ours, peer in (
            ("changes", _changes, _naive_changes),
            ("diff", _diff, _naive_diff),
        ):
            runs = {"ours": _mean_of(ours, driver, REPEATS), "peer": _mean_of(peer, driver, 1)}
            times = in_turn(rounds, **runs)
            mine, theirs = (statistics.median(times[name]) * 1e3 for name in ("ours", "peer"))
            yield Line(
                f"{what} of {CHANGED} files on the Debian root, AUFS on {driver.engine.name}",
                mine, theirs, "by comparing two mounted trees", theirs / mine, 20, "at least",
                "ms", "x faster", times,
            )  # fmt: skip
    finally:
        driver.cleanup()


def _mean_of(work: Callable[[AufsDriver], None], driver: AufsDriver, repeats: int) -> Run:
    def all_of_it() -> None:
        for _ in range(repeats):
            work(driver)

    return lambda: timed(all_of_it) / repeats


def _changes(driver: AufsDriver) -> None:
    assert len(driver.changes(BOX, IMAGE)) > CHANGED


def _naive_changes(driver: AufsDriver) -> None:
    assert len(naive.changes(driver, BOX, IMAGE)) > CHANGED


def _diff(driver: AufsDriver) -> None:
    with driver.diff(BOX, IMAGE) as stream:
        while stream.read(1 << 20):
            pass


def _naive_diff(driver: AufsDriver) -> None:
    with naive.diff(driver, BOX, IMAGE) as stream:
        while stream.read(1 << 20):
            pass
