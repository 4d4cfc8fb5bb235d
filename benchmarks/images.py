"""Whole images: loading, pulling and saving them, beside docker, podman and umoci.

Each begins without the image and ends with one that can be mounted, which is seen to outside of
the time; ours is on disk by then (``syncfs``), too. Times are those of whole commands.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import daemons, inputs, layered, worker
from benchmarks.ground import Ground, tool
from benchmarks.measure import Line, Run, in_turn, timed
from benchmarks.peers import PROOF, Docker, Podman, Umoci
from lamina.kernel.remove import remove_tree
from lamina.oci import mediatypes
from lamina.oci.content import read_document
from lamina.oci.descriptor import Platform, described
from lamina.oci.layout import LayoutDirectory
from lamina.oci.manifest import Index, Manifest
from lamina.oci.registry import Repository
from tests import registries

NAME = "docker.io/bench/root:1"
MEMORY_LIMIT = 150
REQUESTS = 3

DOCKER_LEVEL = 6
"""What gzip(1) does unless told otherwise."""

PODMAN_LEVEL = 4
"""The lowest level of ours whose result is no larger than podman's, whose level can't be set."""


@dataclass
class _Bench:
    ground: Ground
    rounds: int
    docker: Docker
    podman: Podman
    umoci: Umoci
    peaks: dict[str, list[float]] = field(default_factory=dict)

    def ours(self, what: str, *arguments: str | Path) -> float:
        """The seconds of a worker's whole life, on a store of its own."""
        home = self.ground.fresh("store")
        store = (home, self.ground.run / home.name)
        seconds = self.work(what, *store, *arguments)
        worker.run("check", *store, arguments[-1], PROOF)
        remove_tree(home)
        return seconds

    def work(self, what: str, *arguments: str | Path) -> float:
        """The same, without the check."""

        def all_of_it() -> None:
            _, peak = worker.run(what, *arguments)
            self.peaks.setdefault(what, []).append(peak)

        return timed(all_of_it)

    def memory(self, what: str, command: str, peer: float) -> Line:
        """The line for the memory that the work took."""
        peak = max(self.peaks[what])
        return Line(
            f"peak memory of {what}", peak, peer, f"{self.podman.version}, {command}", peak,
            MEMORY_LIMIT, unit="MiB", suffix=" MiB", samples={"ours": self.peaks[what]},
        )  # fmt: skip


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    with ExitStack() as stack:
        containerd = stack.enter_context(daemons.containerd(ground))
        docker = Docker(ground, stack.enter_context(daemons.dockerd(ground, containerd)))
        podman = stack.enter_context(closing(Podman(ground)))
        bench = _Bench(ground, rounds, docker, podman, Umoci())
        yield from _load(bench)
        home = ground.fresh("registry")
        home.mkdir()
        yield from _pull(bench, stack.enter_context(registries.serve(home)))


def _lines(
    what: dict[str, str], peers: dict[str, str], limit: float, times: dict[str, list[float]]
) -> Iterator[Line]:
    """Each of ours beside the quickest of the peers; the others are named with their medians."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    first, *others = sorted(peers, key=lambda name: medians[name])
    named = "; ".join([peers[first], *(f"{peers[n]}: {medians[n]:.3g} s" for n in others)])
    for ours, text in what.items():
        mine, theirs = medians[ours], medians[first]
        samples = {name: times[name] for name in (ours, *peers)}
        yield Line(text, mine, theirs, named, mine / theirs, limit, samples=samples)


# -- load, and save what was loaded


def _load(bench: _Bench) -> Iterator[Line]:
    root = inputs.root()
    ground, docker, podman, umoci = bench.ground, bench.docker, bench.podman, bench.umoci
    layout = inputs.oci_layout(root, ground.fresh("layout"), NAME)
    archive = ground.fresh("oci-archive")
    tool("tar", "-C", layout, "-cf", archive, *os.listdir(layout))
    saved = ground.fresh("docker-archive")
    docker("import", root.tar, NAME)
    docker.pipe("save", NAME, into=f"gzip -{DOCKER_LEVEL} > {saved}")
    docker.remove(NAME)

    def by_umoci() -> float:
        bundle = ground.fresh("bundle")
        seconds = timed(lambda: umoci.unpack(f"{layout}:1", bundle))
        umoci.check(bundle)
        remove_tree(bundle)
        return seconds

    times = in_turn(
        bench.rounds,
        oci=partial(bench.ours, "load", archive, NAME),
        saved=partial(bench.ours, "load", saved, NAME),
        docker=_once(docker, NAME, "load", "-i", saved),
        podman=_once(podman, NAME, "load", "-i", archive),
        umoci=by_umoci,
    )
    what = {"oci": "load an OCI archive", "saved": "load what `docker save | gzip` wrote"}
    peers = {
        "docker": f"{docker.version}, docker load",
        "podman": f"{podman.version}, podman load",
        "umoci": f"{umoci.version}, umoci unpack",
    }
    yield from _lines(what, peers, 0.7, times)
    yield bench.memory("load", "podman load", podman.peak("load", "-i", archive))
    docker("load", "-i", saved)
    yield from _save(bench, archive)
    podman.remove(NAME)
    docker.remove(NAME)


def _once(peer: Docker | Podman, name: str, *command: str | Path) -> Run:
    """A command that brings an image, which goes again after it."""

    def run() -> float:
        seconds = timed(partial(peer, *command))
        peer.check(name)
        peer.remove(name)
        return seconds

    return run


def _save(bench: _Bench, archive: Path) -> Iterator[Line]:
    ground, docker, podman = bench.ground, bench.docker, bench.podman
    home = ground.fresh("store")
    store = (home, ground.run / home.name)
    worker.run("load", *store, archive, NAME)
    sizes: dict[str, int] = {}

    def into(name: str, work: Callable[[Path], object]) -> Run:
        def run() -> float:
            target = ground.fresh(name)
            seconds = timed(lambda: work(target))
            sizes[name] = target.stat().st_size
            target.unlink()
            return seconds

        return run

    def ours(level: int) -> Callable[[Path], object]:
        return lambda target: bench.work("save", *store, NAME, target, str(level))

    runs = {
        "ours-docker": ours(DOCKER_LEVEL),
        "docker": lambda path: docker.pipe("save", NAME, into=f"gzip -{DOCKER_LEVEL} > {path}"),
        "ours-podman": ours(PODMAN_LEVEL),
        "podman": lambda path: podman("save", "-q", "--format", "oci-archive", "-o", path, NAME),
    }
    times = in_turn(bench.rounds, **{name: into(name, work) for name, work in runs.items()})
    peers = {
        "docker": (DOCKER_LEVEL, f"{docker.version}, docker save, gzip -{DOCKER_LEVEL}"),
        "podman": (PODMAN_LEVEL, f"{podman.version}, podman save --format oci-archive"),
    }
    for peer, (level, text) in peers.items():
        mine, theirs = sizes[f"ours-{peer}"] / 1e6, sizes[peer] / 1e6
        yield from _lines(
            {f"ours-{peer}": f"save an OCI archive, gzip level {level}, {mine:.1f} MB"},
            {peer: f"{text}, {theirs:.1f} MB"}, 0.5, times,
        )  # fmt: skip
    peak = podman.peak("save", "-q", "--format", "oci-archive", "-o", ground.fresh("saved"), NAME)
    yield bench.memory("save", "podman save", peak)


# -- pull


def _pull(bench: _Bench, registry: registries.Registry) -> Iterator[Line]:
    ground, docker, podman = bench.ground, bench.docker, bench.podman
    layers = layered.layers(inputs.root())
    layout = inputs.layout_of(layers, ground.fresh("layout"), NAME)
    _push(layout, registry)
    name = f"{registry.host}/bench/layers:1"
    times = in_turn(
        bench.rounds,
        ours=partial(bench.ours, "pull", name),
        docker=_once(docker, name, "pull", name),
        podman=_once(podman, name, "pull", "-q", "--tls-verify=false", name),
    )
    peers = {
        "docker": f"{docker.version}, docker pull",
        "podman": f"{podman.version}, podman pull",
    }
    yield from _lines({"ours": f"pull an image of {len(layers)} layers"}, peers, 0.5, times)
    peak = podman.peak("pull", "-q", "--tls-verify=false", name)
    yield bench.memory("pull", "podman pull", peak)
    for tag, what in (("1", "image"), ("index", "image by its index")):
        yield _second_pull(bench, registry, f"{registry.host}/bench/layers:{tag}", what)


def _push(layout: Path, registry: registries.Registry) -> None:
    """As ``bench/layers:1``, and in an index as ``bench/layers:index``."""
    source = LayoutDirectory(layout)
    with closing(source), closing(Repository(registry.host, "bench/layers")) as far:
        found = source.resolve(None)
        document = read_document(source, found)
        manifest = Manifest.decode(document)
        for blob in (manifest.config, *manifest.layers):
            with source.open(blob) as stream:
                far.put(blob, stream)
        far.put_manifest(found, document, "1")
        named = described(document, found.media_type)
        named.platform = Platform(os="linux", architecture="amd64")
        index = Index(manifests=[named]).encode()
        far.put_manifest(described(index, mediatypes.OCI_INDEX), index, "index")


def _second_pull(bench: _Bench, registry: registries.Registry, name: str, what: str) -> Line:
    """The requests for an image that did not change; one for a blob counts as too many."""
    home = bench.ground.fresh("store")
    store = (home, bench.ground.run / home.name)

    def asked(pull: Callable[[], object]) -> int:
        pull()
        before = len(registry.requests())
        pull()
        requests = registry.requests()[before:]
        blobs = sum("/blobs/" in request for request in requests)
        return len(requests) + REQUESTS * blobs

    ours = asked(lambda: worker.run("pull", *store, name))
    theirs = asked(lambda: bench.podman("pull", "-q", "--tls-verify=false", name))
    remove_tree(home)
    return Line(
        f"requests of a second pull, {what}", ours, theirs, f"{bench.podman.version}, podman pull",
        ours, REQUESTS, unit="", suffix="",
    )  # fmt: skip
