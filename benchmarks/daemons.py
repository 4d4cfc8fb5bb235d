"""containerd, dockerd and our servers, with everything they keep on the measured file system."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import command
from benchmarks.ground import Ground, output

_PATIENCE = 60  # seconds for a daemon to come up, or down
_PLUGINS = Path("/run/docker/plugins")


@contextmanager
def _daemon(argv: list[str | Path], socket: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as sink:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        _wait_for(process, socket, log)
        yield process
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
        time.sleep(0.005)


@contextmanager
def containerd(ground: Ground, *, programs: Path | None = None, config: str = "") -> Iterator[Path]:
    """A containerd; its socket. ``programs`` is where it is, if it is not this machine's.

    Its root is ``containerd`` beside the socket, a link; ``config`` is added to its configuration.
    """
    root = ground.fresh("containerd")
    run = ground.run / root.name
    run.mkdir()
    (run / "containerd").symlink_to(root)
    socket = run / "containerd.sock"
    file = run / "config.toml"
    file.write_text(
        f'version = 2\nroot = "{root}"\nstate = "{run}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{socket}"\n{config}'
    )
    program = programs / "containerd" if programs else "containerd"
    with _daemon([program, "--config", file], socket, run / "log"):
        yield socket


@contextmanager
def lamina(
    ground: Ground, driver: str, *options: str | Path, home: Path | None = None
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """``lamina serve containerd``: its socket and its process."""
    home = home or ground.fresh(driver)
    run = ground.run / home.name
    run.mkdir(exist_ok=True)
    socket = run / "lamina.sock"
    argv: list[str | Path] = [
        *command.lamina(), "--run-root", run / "refs", "serve", "containerd", "--address", socket,
        "--root", home, "--driver", driver, *options,
    ]  # fmt: skip
    with _daemon(argv, socket, run / "log") as process:
        yield socket, process


@contextmanager
def plugin(ground: Ground, driver: str) -> Iterator[str]:
    """``lamina serve docker``; the name of the storage driver that it is to Docker."""
    home = ground.fresh("plugin")
    run = ground.run / home.name
    run.mkdir()
    _PLUGINS.mkdir(parents=True, exist_ok=True)
    socket = _PLUGINS / f"lamina-bench-{os.getpid()}.sock"
    argv: list[str | Path] = [
        *command.lamina(), "--root", home, "--run-root", run / "refs", "serve", "docker",
        "--address", socket, "--driver", driver,
    ]  # fmt: skip
    with _daemon(argv, socket, run / "log"):
        yield socket.stem


@contextmanager
def dockerd(
    ground: Ground, containerd_socket: Path, driver: str = "overlay2"
) -> Iterator[dict[str, str]]:
    """A dockerd on that containerd; the environment for its client."""
    home = ground.fresh("docker")
    run = ground.run / home.name
    run.mkdir()
    socket = run / "docker.sock"
    (run / "daemon.json").write_text("{}")
    argv: list[str | Path] = [
        "dockerd", "--config-file", run / "daemon.json", "--host", f"unix://{socket}",
        "--data-root", home, "--exec-root", run / "exec",
        "--pidfile", run / "pid", "--containerd", containerd_socket,
        "--experimental", "--storage-driver", driver,
        "--bridge=none", "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip
    with _daemon(argv, socket, run / "log"):
        yield {**os.environ, "DOCKER_HOST": f"unix://{socket}", "DOCKER_CONFIG": str(run)}


def docker_client() -> str:
    """The client that came with the daemon, if there are several."""
    beside = Path(shutil.which("dockerd") or "dockerd").parent.parent / "bin/docker"
    return str(beside) if beside.exists() else "docker"


def versions(programs: Path | None = None) -> tuple[str, str]:
    """Of dockerd and of containerd."""
    docker = output("dockerd", "--version").split(",")[0].removeprefix("Docker version ")
    found = output(programs / "containerd" if programs else "containerd", "--version").split()[2]
    return f"docker {docker}", f"containerd {found.partition('~')[0]}"
