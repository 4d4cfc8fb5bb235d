"""A containerd and a dockerd of our own, with everything they keep on the measured file system."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ground import Ground, output

_PATIENCE = 60  # seconds for a daemon to come up, or down


@contextmanager
def _daemon(argv: list[str | Path], socket: Path, log: Path) -> Iterator[None]:
    with log.open("wb") as sink:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        _wait_for(process, socket, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"a daemon did not come up:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)


@contextmanager
def containerd(ground: Ground) -> Iterator[Path]:
    """A containerd; its socket."""
    run = ground.run / "containerd"
    run.mkdir()
    socket = run / "containerd.sock"
    config = run / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{ground.fresh("containerd")}"\nstate = "{run}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{socket}"\n'
    )
    with _daemon(["containerd", "--config", config], socket, run / "log"):
        yield socket


@contextmanager
def dockerd(ground: Ground, containerd_socket: Path) -> Iterator[dict[str, str]]:
    """A dockerd on that containerd; the environment for its client."""
    run = ground.run / "docker"
    run.mkdir()
    socket = run / "docker.sock"
    (run / "daemon.json").write_text("{}")
    argv: list[str | Path] = [
        "dockerd", "--config-file", run / "daemon.json", "--host", f"unix://{socket}",
        "--data-root", ground.fresh("docker"), "--exec-root", run / "exec",
        "--pidfile", run / "pid", "--containerd", containerd_socket,
        "--storage-driver", "overlay2", "--bridge=none", "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip
    with _daemon(argv, socket, run / "log"):
        yield {**os.environ, "DOCKER_HOST": f"unix://{socket}", "DOCKER_CONFIG": str(run)}


def docker_client() -> str:
    """The client that came with the daemon, if there are several."""
    beside = Path(shutil.which("dockerd") or "dockerd").parent.parent / "bin/docker"
    return str(beside) if beside.exists() else "docker"


def versions() -> tuple[str, str]:
    """Of dockerd and of containerd."""
    docker = output("dockerd", "--version").split(",")[0].removeprefix("Docker version ")
    found = output("containerd", "--version").split()[2]
    return f"docker {docker}", f"containerd {found.partition('~')[0]}"
