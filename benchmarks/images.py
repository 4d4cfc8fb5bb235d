"""Whole images: loading, pulling and saving them, beside docker, podman and umoci.

Each begins without the image and ends with one that can be mounted, which is seen to outside of
the time; ours is on disk by then (``syncfs``), too. Times are those of whole commands.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import daemons, inputs, layered, worker
from benchmarks.ground import Ground, tool
from benchmarks.measure import Line, Run, beside_best, in_turn, timed
from benchmarks.peers import PROOF, Docker, Podman, Umoci, bringing
from lamina.kernel.remove import remove_tree
from lamina.oci import mediatypes
from lamina.oci.content import read_document
from lamina.oci.descriptor import Platform, described
from lamina.oci.layout import LayoutDirectory
from lamina.oci.manifest import Index, Manifest
from lamina.oci.registry import Repository
from tests import registries, servers

NAME = "docker.io/bench/root:1"
REPOSITORY = "public/layers"
"""Which the tests' token server lets anyone pull."""

DRIVERS = ("erofs", "overlay")
"""What root gets where it works, and what root gets else."""

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

    def store(self, driver: str) -> tuple[str, Path, Path]:
        """A new store's driver and places."""
        home = self.ground.fresh("store")
        return driver, home, self.ground.run / home.name

    def ours(self, driver: str, what: str, *arguments: str | Path) -> float:
        """The seconds of a worker's whole life, on a store of its own."""
        store = self.store(driver)
        seconds = self.work(what, *store, *arguments)
        worker.run("check", *store, arguments[-1], PROOF)
        remove_tree(store[1])
        return seconds

    def work(self, what: str, *arguments: str | Path) -> float:
        """The same, without the check."""

        def all_of_it() -> None:
            _, peak = worker.run(what, *arguments)
            self.peaks.setdefault(what, []).append(peak)  # of all drivers

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

    forms = {
        "oci": (archive, "load an OCI archive"),
        "saved": (saved, "load what `docker save | gzip` wrote"),
    }
    ours = {
        f"{form}-{driver}": partial(bench.ours, driver, "load", path, NAME)
        for form, (path, _) in forms.items()
        for driver in DRIVERS
    }
    times = in_turn(
        bench.rounds,
        **ours,
        docker=bringing(docker, NAME, "load", "-i", saved),
        podman=bringing(podman, NAME, "load", "-i", archive),
        umoci=umoci.run(f"{layout}:1", ground),
    )
    what = {
        f"{form}-{driver}": (f"{text} ({driver})", 0.7)
        for form, (_, text) in forms.items()
        for driver in DRIVERS
    }
    peers = {
        "docker": f"{docker.version}, docker load",
        "podman": f"{podman.version}, podman load",
        "umoci": f"{umoci.version}, umoci unpack",
    }
    yield from beside_best(what, peers, times)
    yield bench.memory("load", "podman load", podman.peak("load", "-i", archive))
    docker("load", "-i", saved)
    yield from _save(bench, archive)
    podman.remove(NAME)
    docker.remove(NAME)


def _save(bench: _Bench, archive: Path) -> Iterator[Line]:
    ground, docker, podman = bench.ground, bench.docker, bench.podman
    stores = {driver: bench.store(driver) for driver in DRIVERS}
    for store in stores.values():
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

    def ours(driver: str, level: int) -> Callable[[Path], object]:
        return lambda target: bench.work("save", *stores[driver], NAME, target, str(level))

    runs = {
        **{f"docker-{driver}": ours(driver, DOCKER_LEVEL) for driver in DRIVERS},
        "docker": lambda path: docker.pipe("save", NAME, into=f"gzip -{DOCKER_LEVEL} > {path}"),
        **{f"podman-{driver}": ours(driver, PODMAN_LEVEL) for driver in DRIVERS},
        "podman": lambda path: podman("save", "-q", "--format", "oci-archive", "-o", path, NAME),
    }
    times = in_turn(bench.rounds, **{name: into(name, work) for name, work in runs.items()})
    peers = {
        "docker": (DOCKER_LEVEL, f"{docker.version}, docker save, gzip -{DOCKER_LEVEL}"),
        "podman": (PODMAN_LEVEL, f"{podman.version}, podman save --format oci-archive"),
    }
    for peer, (level, text) in peers.items():
        mine, theirs = sizes[f"{peer}-{DRIVERS[0]}"] / 1e6, sizes[peer] / 1e6
        what = f"save an OCI archive, gzip level {level}, {mine:.1f} MB"
        yield from beside_best(
            {f"{peer}-{driver}": (f"{what} ({driver})", 0.5) for driver in DRIVERS},
            {peer: f"{text}, {theirs:.1f} MB"}, times,
        )  # fmt: skip
    peak = podman.peak("save", "-q", "--format", "oci-archive", "-o", ground.fresh("saved"), NAME)
    yield bench.memory("save", "podman save", peak)


# -- pull


def _pull(bench: _Bench, registry: registries.Registry) -> Iterator[Line]:
    ground, docker, podman = bench.ground, bench.docker, bench.podman
    layers = layered.layers(inputs.root())
    layout = inputs.layout_of(layers, ground.fresh("layout"), NAME)
    _push(layout, registry)
    name = f"{registry.host}/{REPOSITORY}:1"
    times = in_turn(
        bench.rounds,
        **{driver: partial(bench.ours, driver, "pull", name) for driver in DRIVERS},
        docker=bringing(docker, name, "pull", name),
        podman=bringing(podman, name, "pull", "-q", "--tls-verify=false", name),
    )
    peers = {
        "docker": f"{docker.version}, docker pull",
        "podman": f"{podman.version}, podman pull",
    }
    what = f"pull an image of {len(layers)} layers"
    lines = {driver: (f"{what} ({driver})", 0.5) for driver in DRIVERS}
    yield from beside_best(lines, peers, times)
    peak = podman.peak("pull", "-q", "--tls-verify=false", name)
    yield bench.memory("pull", "podman pull", peak)
    for tag, what in (("1", "image"), ("index", "image by its index")):
        yield _second_pull(bench, registry.requests, f"{registry.host}/{REPOSITORY}:{tag}", what)
    yield from _with_tokens(bench, registry)


def _push(layout: Path, registry: registries.Registry) -> None:
    """With the tag ``1``, and in an index with the tag ``index``."""
    source = LayoutDirectory(layout)
    with closing(source), closing(Repository(registry.host, REPOSITORY)) as far:
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


def _with_tokens(bench: _Bench, registry: registries.Registry) -> Iterator[Line]:
    """The same from another registry on the same storage, which wants tokens of a server."""
    home = bench.ground.fresh("guarded")
    home.mkdir()
    authority = registries.Authority(home)
    storage = registry.log.parent / "storage"
    with servers.Tokens() as tokens, tokens.running():
        tokens.life = 300  # podman wants a whole number
        tokens.sign = lambda scopes: authority.web_token(tokens.SERVICE, scopes)
        settings = {
            "storage": {"filesystem": {"rootdirectory": str(storage)}},
            "auth": {
                "token": {
                    "realm": f"http://{tokens.host}/token",
                    "service": tokens.SERVICE,
                    "issuer": "tests",
                    "rootcertbundle": str(authority.ca),
                }
            },
        }
        with registries.serve(home, settings=settings) as guarded:

            def requests() -> list[str]:
                return [*guarded.requests(), *map(str, tokens.requests)]

            name = f"{guarded.host}/{REPOSITORY}:1"
            yield _second_pull(bench, requests, name, "image, with tokens")


def _second_pull(bench: _Bench, requests: Callable[[], list[str]], name: str, what: str) -> Line:
    """The requests for an image that did not change; one for a blob counts as too many."""
    store = bench.store(DRIVERS[0])

    def asked(pull: Callable[[], object]) -> int:
        pull()
        before = Counter(requests())
        pull()
        new = Counter(requests()) - before
        blobs = sum(count for request, count in new.items() if "/blobs/" in request)
        return new.total() + REQUESTS * blobs

    ours = asked(lambda: worker.run("pull", *store, name))
    theirs = asked(lambda: bench.podman("pull", "-q", "--tls-verify=false", name))
    remove_tree(store[1])
    return Line(
        f"requests of a second pull, {what}", ours, theirs, f"{bench.podman.version}, podman pull",
        ours, REQUESTS, unit="", suffix="",
    )  # fmt: skip
