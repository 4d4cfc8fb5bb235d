"""Unpacking a layer: time and memory."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import inputs, worker
from benchmarks.command import lamina
from benchmarks.ground import Ground, output, tool
from benchmarks.measure import Line, compare, timed
from lamina.kernel.remove import remove_tree

MEMORY_LIMIT = 64


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    root = inputs.root()
    peaks: dict[str, list[float]] = {"plain": [], "gzip": []}
    tar = output("tar", "--version").splitlines()[0]
    umoci = " ".join(output("umoci", "--version").split())

    def by_tar() -> float:
        target = ground.fresh("tar")
        target.mkdir()
        work = partial(tool, "tar", "-C", target, "--numeric-owner", "-xpf", root.tar)
        return _timed_tree(target, work)

    def plain(driver: str) -> float:
        return _ours(ground, peaks["plain"], "unpack", driver, root.tar)

    def compressed() -> float:
        arguments = (root.gzip, root.digest, root.diff_id)
        return _ours(ground, peaks["gzip"], "unpack-compressed", "overlay", *arguments)

    yield compare(
        "unpack the plain tar (overlay)", lambda: plain("overlay"), by_tar, tar,
        limit=1.15, rounds=rounds,
    )  # fmt: skip
    layout = inputs.oci_layout(root, ground.fresh("layout"))

    def by_umoci() -> float:
        target = ground.fresh("umoci")
        image = f"{layout}:root"
        return _timed_tree(
            target, partial(tool, "umoci", "raw", "unpack", "--image", image, target)
        )

    yield compare(
        "unpack it gzipped, digests checked", compressed, by_umoci, f"{umoci}, raw unpack",
        limit=0.7, rounds=rounds,
    )  # fmt: skip
    yield compare(
        "lamina import of it, synced and able to be exported byte for byte",
        lambda: _import(ground, root.gzip), by_umoci, f"{umoci}, raw unpack",
        limit=None, rounds=rounds,
    )  # fmt: skip
    interpreter = statistics.median(worker.run("nothing")[1] for _ in range(rounds))
    theirs = _peak_of("umoci", "raw", "unpack", "--image", f"{layout}:root", ground.fresh("peak"))
    for kind, measured in peaks.items():
        over = statistics.median(measured) - interpreter
        yield Line(
            f"peak memory over the interpreter's, unpacking {kind}", over, theirs, umoci, over,
            MEMORY_LIMIT, unit="MiB", suffix=" MiB", samples={"ours": measured},
        )  # fmt: skip


def _timed_tree(target: Path, work: Callable[[], object]) -> float:
    seconds = timed(work)
    remove_tree(target)
    return seconds


def _ours(
    ground: Ground, peaks: list[float], work: str, driver: str, *arguments: str | Path
) -> float:
    home = ground.fresh(driver)
    os.sync()
    seconds, peak = worker.run(work, driver, home, ground.run / home.name, *arguments)
    peaks.append(peak)
    remove_tree(home)
    return seconds


def _import(ground: Ground, path: Path) -> float:
    home = ground.fresh("store")
    options = ("--root", home, "--run-root", ground.run / home.name, "--quiet")
    return _timed_tree(home, partial(tool, *lamina(), *options, "import", path, "root"))


def _peak_of(*argv: str | Path) -> float:
    """The peak memory of a program in MiB."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{argv[0]} failed with {process.returncode}")
    return usage.ru_maxrss / 1024
