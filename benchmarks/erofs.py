"""The erofs driver, beside what unpacks: a tar to mounted, its index, saving, removing, the disk.

Times of single steps are those of calls in a process that has begun; of images, of whole commands.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from benchmarks import daemons, depth, erofsutils, inputs, worker
from benchmarks.ground import Ground, output, tool
from benchmarks.inputs import Root
from benchmarks.measure import Line, Run, beside_best, compare, in_turn, timed
from benchmarks.peers import PROOF, Docker, Podman, Umoci, bringing
from lamina.drivers import Driver
from lamina.drivers.erofs import ErofsDriver
from lamina.drivers.overlay import OverlayDriver
from lamina.kernel.remove import remove_tree
from lamina.types import LayerId

NAME = "docker.io/bench/root:1"
LAYER = LayerId("layer")
MEMORY_LIMIT = 1024  # bytes an entry

_GREP_FOR = "in none of the files"


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    root = inputs.root()
    for part in (_plain, _gzipped, _index, _memory, _remove, _grep, _disk):
        yield from part(ground, rounds, root)
        ground.clear()
    yield from depth.lines(ground, rounds)


def _line(
    times: dict[str, list[float]], what: str, ours: str, peer: str, named: str, limit: float
) -> Line:
    """One of the lines for several runs in turn."""
    mine, theirs = statistics.median(times[ours]), statistics.median(times[peer])
    samples = {name: times[name] for name in (ours, peer)}
    return Line(what, mine, theirs, named, mine / theirs, limit, samples=samples)


# -- to a mounted tree


def _mounted(ground: Ground, *what: str | Path) -> float:
    """The seconds till a file of the layer, unpacked or not, can be read."""
    home = ground.fresh("erofs")
    os.sync()
    seconds, _ = worker.run("mount", "erofs", home, ground.run / home.name, PROOF, *what)
    remove_tree(home)
    return seconds


def _plain(ground: Ground, rounds: int, root: Root) -> Iterator[Line]:
    def by_tar() -> float:
        target = ground.fresh("tar")
        target.mkdir()
        seconds = timed(partial(tool, "tar", "-C", target, "--numeric-owner", "-xpf", root.tar))
        remove_tree(target)
        return seconds

    def by_cp() -> float:
        target = ground.fresh("copy")
        seconds = timed(partial(tool, "cp", root.tar, target))
        target.unlink()
        return seconds

    times = in_turn(rounds, ours=partial(_mounted, ground, root.tar), tar=by_tar, cp=by_cp)
    what = "a plain tar to mounted and readable"
    tar = output("tar", "--version").splitlines()[0]
    yield _line(times, what, "ours", "tar", f"{tar}, unpacking it", 0.2)
    yield _line(times, what, "ours", "cp", "cp of the tar", 1.5)


def _gzipped(ground: Ground, rounds: int, root: Root) -> Iterator[Line]:
    with ExitStack() as stack:
        containerd = stack.enter_context(daemons.containerd(ground))
        docker = Docker(ground, stack.enter_context(daemons.dockerd(ground, containerd)))
        podman = stack.enter_context(closing(Podman(ground)))
        umoci = Umoci()
        layout = inputs.oci_layout(root, ground.fresh("layout"), NAME)
        archive = ground.fresh("oci-archive")
        tool("tar", "-C", layout, "-cf", archive, *os.listdir(layout))
        saved = ground.fresh("docker-archive")
        docker("import", root.tar, NAME)
        docker.pipe("save", NAME, into=f"gzip -6 > {saved}")
        docker.remove(NAME)
        stages = {
            "inflate": ("inflate", root.gzip),
            "hash": ("hash", root.tar),
            "write": ("write", root.tar, ground),
        }
        times = in_turn(
            rounds,
            ours=partial(_mounted, ground, root.gzip, root.digest, root.diff_id),
            docker=bringing(docker, NAME, "load", "-i", saved),
            podman=bringing(podman, NAME, "load", "-i", archive),
            umoci=umoci.run(f"{layout}:1", ground),
            inflate=lambda: worker.run("inflate", root.gzip)[0],
            hash=lambda: worker.run("hash", root.tar)[0],
            write=partial(_write, ground, root.tar),
        )
        what = "the same gzipped, digests checked"
        peers = {
            "docker": f"{docker.version}, docker load",
            "podman": f"{podman.version}, podman load",
            "umoci": f"{umoci.version}, umoci unpack",
        }
        yield from beside_best({"ours": (what, 0.15)}, peers, times)
        slowest = max(stages, key=lambda name: statistics.median(times[name]))
        medians = ", ".join(f"{n} {statistics.median(times[n]):.3g} s" for n in stages)
        named = f"{slowest} alone ({medians})"
        yield _line(times, what, "ours", slowest, named, 1.3)
        docker("load", "-i", saved)
        yield from _save(ground, rounds, archive, docker)
        docker.remove(NAME)


def _write(ground: Ground, tar: Path) -> float:
    target = ground.fresh("written")
    os.sync()
    seconds, _ = worker.run("write", tar, target)
    target.unlink()
    return seconds


def _save(ground: Ground, rounds: int, archive: Path, docker: Docker) -> Iterator[Line]:
    home = ground.fresh("store")
    store = ("erofs", home, ground.run / home.name)
    worker.run("load", *store, archive, NAME)

    def into(work: Callable[[Path], object]) -> Run:
        def run() -> float:
            target = ground.fresh("saved")
            seconds = timed(lambda: work(target))
            target.unlink()
            return seconds

        return run

    yield compare(
        "save of an image just loaded, uncompressed",
        into(lambda target: worker.run("save-plain", *store, NAME, target)),
        into(lambda target: docker("save", "-o", target, NAME)),
        f"{docker.version}, docker save", limit=0.2, rounds=rounds,
    )  # fmt: skip
    remove_tree(home)


# -- the index


def _index(ground: Ground, rounds: int, root: Root) -> Iterator[Line]:
    def into(work: Callable[[Path], float]) -> Run:
        def run() -> float:
            target = ground.fresh("index")
            os.sync()
            seconds = work(target)
            target.unlink(missing_ok=True)
            return seconds

        return run

    mkfs = erofsutils.find()
    runs = {
        "ours": into(lambda target: worker.run("index", root.tar, target)[0]),
        "tarfile": into(lambda _: worker.run("list", root.tar)[0]),
    }
    if mkfs is not None:
        made = mkfs
        runs["mkfs"] = into(lambda target: timed(partial(made.index, root.tar, target)))
    times = in_turn(rounds, **runs)
    what = f"the index alone, of {root.entries:,} entries"
    yield _line(times, what, "ours", "tarfile", "Python's tarfile, listing them", 0.5)
    if mkfs is not None:
        yield _line(times, what, "ours", "mkfs", f"{mkfs.version} --tar=i", 2.5)


def _memory(ground: Ground, rounds: int, root: Root) -> Iterator[Line]:
    """Of the whole process, less what it has with a tar of one entry."""
    small = ground.fresh("small")
    tool("tar", "-cf", small, "-C", "/", "--no-recursion", "etc")

    def peak(tar: Path) -> float:
        target = ground.fresh("index")
        _, most = worker.run("index-stream", tar, target)
        target.unlink()
        return most * (1 << 20)

    peaks = in_turn(rounds, ours=partial(peak, root.tar), small=partial(peak, small))
    ours, least = statistics.median(peaks["ours"]), statistics.median(peaks["small"])
    each = (ours - least) / root.entries
    yield Line(
        "peak memory of that, an entry", ours / (1 << 20), least / (1 << 20), "a tar of one entry",
        each, MEMORY_LIMIT, unit="MiB", suffix=" bytes", samples=peaks,
    )  # fmt: skip


# -- a layer that is there


@contextmanager
def _layer(
    ground: Ground, make: type[ErofsDriver | OverlayDriver], root: Root
) -> Iterator[tuple[Driver, Path]]:
    """A driver with the root as a layer, and its home."""
    home = ground.fresh(make.name)
    with closing(make(home, ground.run / home.name)) as driver:
        driver.create(LAYER)
        with root.tar.open("rb") as stream:
            driver.apply_diff(LAYER, None, stream)
        yield driver, home
    remove_tree(home)


def _remove(ground: Ground, rounds: int, root: Root) -> Iterator[Line]:
    """Just made, with all its pages in memory, and long after that."""

    def of(make: type[ErofsDriver | OverlayDriver], prepare: Callable[[], object]) -> Run:
        def run() -> float:
            with _layer(ground, make, root) as (driver, _):
                prepare()
                return timed(partial(driver.remove, LAYER))

        return run

    for when, prepare in (("just made", os.sync), ("not in memory", _drop_caches)):
        yield compare(
            f"remove a layer of {root.entries:,} entries, {when}", of(ErofsDriver, prepare),
            of(OverlayDriver, prepare), "the overlay driver", limit=0.05, rounds=rounds, unit="ms",
        )  # fmt: skip


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _grep(ground: Ground, rounds: int, root: Root) -> Iterator[Line]:
    tree = ground.fresh("tree")
    tree.mkdir()
    tool("tar", "-C", tree, "--numeric-owner", "-xpf", root.tar)

    def cold(top: Path) -> float:
        _drop_caches()
        return timed(partial(_search, top))

    with _layer(ground, ErofsDriver, root) as (driver, _), driver.mounted(LAYER) as top:
        for how, run in (("warm", lambda top: timed(partial(_search, top))), ("cold", cold)):
            yield compare(
                f"grep -r through the mount, {how}", partial(run, top), partial(run, tree),
                "the tree unpacked on ext4", limit=1.1, rounds=rounds,
            )  # fmt: skip


def _search(top: Path) -> None:
    done = subprocess.run(
        ["grep", "-rlF", _GREP_FOR, top], capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 1 or done.stdout or done.stderr:
        raise SystemExit(f"grep found, or failed: {(done.stdout + done.stderr).decode()[-300:]}")


def _disk(ground: Ground, rounds: int, root: Root) -> Iterator[Line]:
    with _layer(ground, ErofsDriver, root) as (_, home):
        os.sync()
        every = (Path(top, name) for top, dirs, files in os.walk(home) for name in (*dirs, *files))
        used = sum(path.lstat().st_blocks for path in every) * 512 / (1 << 20)
    size = root.tar.stat().st_size / (1 << 20)
    yield Line("disk that the layer takes", used, size, "its tar", used / size, 1.02, unit="MiB")
