"""The servers of ``lamina serve`` beside what containerd and dockerd do themselves.

Snapshots stand on the Debian root in 12 layers. Ours is asked at its own socket, containerd's
overlayfs through containerd's service, by the same clients in processes of their own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import grpc

from benchmarks import callers, daemons, inputs, layered
from benchmarks.callers import Callers, Client, Target
from benchmarks.ground import Ground, output, tool, unmount_below
from benchmarks.measure import Line, in_turn, timed
from benchmarks.peers import Docker, bringing
from lamina.serve.containerd.api import health_pb2
from tests import daemons as test_daemons
from tests import debian

NAME = "docker.io/bench/root:1"
ALONE = 100
"""Cycles of one client in a run."""
CLIENTS = 16
TOGETHER = 20
"""Cycles of each of them."""
MANY = 10_000

_OVERLAYFS = "overlayfs"
_CHEAP = Path("/dev/shm")


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    root = inputs.root()
    for part in (_calls, _import, _docker_load, _start, _memory):
        yield from part(ground, rounds, root)
        unmount_below(ground.path)
        ground.clear()


def _containerd() -> tuple[Path | None, str]:
    """Where a containerd is that takes our differ, and its version; else this machine's."""
    try:
        programs: Path | None = test_daemons.with_differs()
    except debian.Unavailable as error:
        print(f"no containerd 1.7 to measure with: {error}", file=sys.stderr)
        programs = None
    return programs, daemons.versions(programs)[1]


def _ctr(programs: Path | None, socket: Path) -> tuple[str | Path, ...]:
    return programs / "ctr" if programs else "ctr", "--address", socket, "images"


def _line(
    times: dict[str, list[float]], what: str, ours: str, peer: str, named: str, limit: float | None,
    *, count: int = 1,
) -> Line:  # fmt: skip
    """One of the lines for several runs in turn, each of ``count`` cycles."""
    mine, theirs = (statistics.median(times[name]) / count * 1e3 for name in (ours, peer))
    samples = {name: times[name] for name in (ours, peer)}
    return Line(what, mine, theirs, named, mine / theirs, limit, unit="ms", samples=samples)


# -- Prepare, Mounts, Remove


def _calls(ground: Ground, rounds: int, root: inputs.Root) -> Iterator[Line]:
    programs, version = _containerd()
    layers = layered.layers(root)
    layout = inputs.layout_of(layers, ground.fresh("layout"), NAME)
    with ExitStack() as stack:
        targets = {
            driver: stack.enter_context(_ours(ground, driver, layout))
            for driver in ("erofs", "overlay")
        }
        targets["peer"] = stack.enter_context(_theirs(ground, programs, layout))
        for count, cycles in ((1, ALONE), (CLIENTS, TOGETHER)):
            with callers.callers(count) as clients:
                runs = {
                    name: partial(_cycles, clients, target, cycles)
                    for name, target in targets.items()
                }
                times = in_turn(rounds, **runs)
            for driver in ("erofs", "overlay"):
                named = f"{version}, overlayfs"
                if count == 1:
                    what = f"Prepare, Mounts and Remove over the socket ({driver})"
                    yield _line(times, what, driver, "peer", named, 1.5, count=cycles)
                else:
                    what = f"the same under {count} clients ({driver})"
                    yield _rate(times, what, driver, named, count * cycles)


def _rate(times: dict[str, list[float]], what: str, ours: str, named: str, count: int) -> Line:
    """The line of a throughput."""
    mine, theirs = (count / statistics.median(times[name]) for name in (ours, "peer"))
    samples = {name: times[name] for name in (ours, "peer")}
    return Line(
        what, mine, theirs, named, mine / theirs, 0.7, "at least", unit="/s", samples=samples
    )


def _cycles(clients: Callers, target: Target, cycles: int) -> float:
    os.sync()
    return clients.run(target, cycles)


@contextmanager
def _ours(ground: Ground, driver: str, layout: Path, *options: str) -> Iterator[Target]:
    """Our server, with an image unpacked by its differ."""
    with daemons.lamina(ground, driver, "--content", layout, *options) as (socket, _):
        yield _filled(socket, layout)


def _filled(socket: Path, layout: Path) -> Target:
    parent = ""
    for number, blob in enumerate(callers.layout_blobs(layout)):
        client = Client(Target(str(socket), "", parent))
        parent = f"layer {number}"
        client.unpack(blob, parent)
        client.close()
    return Target(str(socket), "", parent)


@contextmanager
def _theirs(ground: Ground, programs: Path | None, layout: Path) -> Iterator[Target]:
    """containerd's own snapshotter, with the same image."""
    archive = _archive(ground, layout)
    with daemons.containerd(ground, programs=programs) as socket:
        tool(*_ctr(programs, socket), "import", *_unpacked_locally(programs), archive)
        archive.unlink()
        listed = output(*_ctr(programs, socket)[:-1], "snapshots", "ls").splitlines()[1:]
        rows = [line.split() for line in listed]
        (top,) = {row[0] for row in rows} - {row[1] for row in rows}
        yield Target(str(socket), _OVERLAYFS, top)


def _archive(ground: Ground, layout: Path) -> Path:
    archive = ground.fresh("archive")
    tool("tar", "-C", layout, "-cf", archive, *os.listdir(layout))
    return archive


# -- images


def _unpacked_locally(programs: Path | None) -> list[str]:
    """containerd 1.7's ctr would have another service unpack, with a configuration of its own."""
    return [] if programs is None else ["--local"]


def _import(ground: Ground, rounds: int, root: inputs.Root) -> Iterator[Line]:
    programs, version = _containerd()
    layout = inputs.oci_layout(root, ground.fresh("layout"), NAME)
    archive = _archive(ground, layout)
    with ExitStack() as stack:
        theirs = stack.enter_context(daemons.containerd(ground, programs=programs))
        ours = stack.enter_context(_proxied(ground, programs))
        unsynced = stack.enter_context(_proxied(ground, programs, "--no-sync"))
        times = in_turn(
            rounds,
            ours=partial(_imported, programs, ours, "lamina", archive),
            unsynced=partial(_imported, programs, unsynced, "lamina", archive),
            peer=partial(_imported, programs, theirs, _OVERLAYFS, archive),
        )
    differ = "our differ" if programs else "containerd's differ"
    what = f"ctr images import to unpacked (erofs, {differ})"
    named = f"{version}, overlayfs"
    yield _line(times, what, "ours", "peer", named, 0.3)
    yield _line(
        times, "the same with --no-sync, as the peer has it", "unsynced", "peer", named, None
    )


@contextmanager
def _proxied(ground: Ground, programs: Path | None, *more: str) -> Iterator[Path]:
    """A containerd with our snapshotter, and our differ if it takes one; its socket."""
    home = ground.fresh("proxied")
    ours = ground.run / home.name / "lamina.sock"
    config = f'[proxy_plugins.lamina]\ntype = "snapshot"\naddress = "{ours}"\n'
    if programs is not None:
        config += (
            f'[proxy_plugins.lamina-diff]\ntype = "diff"\naddress = "{ours}"\n'
            '[plugins."io.containerd.service.v1.diff-service"]\n'
            'default = ["lamina-diff", "walking"]\n'
        )
    with daemons.containerd(ground, programs=programs, config=config) as socket:
        content = socket.parent / "containerd/io.containerd.content.v1.content"
        options: tuple[str | Path, ...] = ("--content", content, "--containerd", socket, *more)
        with daemons.lamina(ground, "erofs", *options, home=home):
            yield socket


def _imported(programs: Path | None, socket: Path, snapshotter: str, archive: Path) -> float:
    """The seconds of an import; the image goes again after it."""
    ctr = _ctr(programs, socket)
    options = (*_unpacked_locally(programs), "--snapshotter", snapshotter)
    seconds = timed(partial(tool, *ctr, "import", *options, archive))
    listed = output(*ctr[:-1], "snapshots", "--snapshotter", snapshotter, "ls")
    assert "Committed" in listed
    tool(*ctr, "rm", "--sync", NAME)
    return seconds


def _docker_load(ground: Ground, rounds: int, root: inputs.Root) -> Iterator[Line]:
    with ExitStack() as stack:
        clients = {}
        for name in ("ours", "peer"):
            driver = stack.enter_context(daemons.plugin(ground, "erofs")) if name == "ours" else ""
            containerd = stack.enter_context(daemons.containerd(ground))
            env = daemons.dockerd(ground, containerd, driver or "overlay2")
            clients[name] = Docker(ground, stack.enter_context(env))
        peer = clients["peer"]
        saved = ground.fresh("saved")
        peer("import", root.tar, NAME)
        peer("save", "-o", saved, NAME)
        peer.remove(NAME)
        runs = {
            name: bringing(docker, NAME, "load", "-i", saved) for name, docker in clients.items()
        }
        times = in_turn(rounds, **runs)
    what = "docker load through the plugin (erofs)"
    yield _line(times, what, "ours", "peer", f"{peer.version}, overlay2", 0.7)


# -- the server itself


def _start(ground: Ground, rounds: int, root: inputs.Root) -> Iterator[Line]:
    home = ground.fresh("erofs")
    with daemons.lamina(ground, "erofs", home=home):
        pass  # makes it

    def ours() -> float:
        os.sync()
        start = time.perf_counter()
        with daemons.lamina(ground, "erofs", home=home) as (socket, _):
            _ask(socket)
            return time.perf_counter() - start

    times = in_turn(
        rounds,
        ours=ours,
        peer=lambda: timed(partial(tool, sys.executable, "-c", "import grpc")),
    )
    named = f"python -c 'import grpc' {grpc.__version__}"
    yield _line(times, "lamina serve containerd to its first answer", "ours", "peer", named, 2)


def _ask(socket: Path) -> None:
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = check(b"", timeout=10, wait_for_ready=True)
    assert health_pb2.HealthCheckResponse.FromString(answer).status == 1


def _memory(ground: Ground, rounds: int, root: inputs.Root) -> Iterator[Line]:
    layers = layered.layers(root)
    layout = inputs.layout_of(layers, ground.fresh("layout"), NAME)
    with daemons.lamina(ground, "overlay", "--content", layout) as (socket, process):
        _ask(socket)
        idle = _resident(process)
        yield _memory_line("memory of an idle server", idle, 60)
        target = _filled(socket, layout)
        with callers.callers(CLIENTS) as clients:
            clients.run(target, MANY // CLIENTS, keep=True)
        after = _resident(process)
        yield _memory_line(f"memory after {MANY:,} snapshots (overlay)", after, 100)


def _memory_line(what: str, found: tuple[float, float], limit: float) -> Line:
    resident, share = found
    return Line(
        f"{what}, resident", resident, share, "its proportional share (PSS)", resident, limit,
        unit="MiB", suffix=" MiB",
    )  # fmt: skip


def _resident(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Resident memory, shared pages and all, and the proportional share of them; MiB."""
    found = {}
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        found[name] = int(size) / 1024
    return found["Rss:"], found["Pss:"]
