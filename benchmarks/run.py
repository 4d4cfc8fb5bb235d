"""Starting a command in a container: ``lamina run`` and ``lamina try``, docker and ctr."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import daemons, inputs
from benchmarks.command import lamina
from benchmarks.ground import Ground, tool
from benchmarks.measure import Line, Run, in_turn, timed

IMAGE = "docker.io/library/root:latest"


def lines(ground: Ground, rounds: int) -> Iterator[Line]:
    """The lines of this group."""
    root = inputs.root()
    with ExitStack() as stack:
        containerd = stack.enter_context(daemons.containerd(ground))
        docker_env = stack.enter_context(daemons.dockerd(ground, containerd))
        runs = {
            **_lamina(ground, root),
            "docker": _docker(root, docker_env),
            "ctr": _ctr(ground, root, containerd),
        }
        times = in_turn(rounds, **runs)
    docker, ctr = daemons.versions()
    peers = {
        "docker": (f"{docker}, docker run --rm --network none", 0.5),
        "ctr": (f"{ctr}, ctr run --rm", 1.0),
    }
    for ours, what in (("run", "lamina run IMAGE -- true"), ("try", "lamina try -- true")):
        for peer, (name, limit) in peers.items():
            mine, theirs = (statistics.median(times[n]) * 1e3 for n in (ours, peer))
            yield Line(
                f"{what}, beside {peer}", mine, theirs, name, mine / theirs, limit, unit="ms",
                samples={n: times[n] for n in (ours, peer)},
            )  # fmt: skip


def _lamina(ground: Ground, root: inputs.Root) -> dict[str, Run]:
    options = ["--root", str(ground.fresh("lamina")), "--run-root", str(ground.run / "lamina")]
    command = [*lamina(), *options, "--quiet"]
    tool(*command, "import", root.tar, "root")
    return {
        "run": lambda: timed(partial(tool, *command, "run", "--rm", "root", "--", "true")),
        "try": lambda: timed(partial(tool, *command, "try", "--discard", "--", "true")),
    }


def _docker(root: inputs.Root, env: dict[str, str]) -> Run:
    client = daemons.docker_client()
    tool(client, "import", root.tar, IMAGE, env=env)
    argv = (client, "run", "--rm", "--network", "none", IMAGE, "true")
    return lambda: timed(partial(tool, *argv, env=env))


def _ctr(ground: Ground, root: inputs.Root, socket: Path) -> Run:
    serial = itertools.count()
    archive = ground.fresh("oci").with_suffix(".tar")
    layout = inputs.oci_layout(root, ground.fresh("layout"), IMAGE)
    tool("tar", "-C", layout, "-cf", archive, *os.listdir(layout))
    ctr = ("ctr", "--address", socket)
    tool(*ctr, "images", "import", archive)
    return lambda: timed(partial(tool, *ctr, "run", "--rm", IMAGE, f"box{next(serial)}", "true"))
