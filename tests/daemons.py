"""A containerd and a dockerd of the tests' own, and what is left of them afterwards: nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import debian, support

_PATIENCE = 60
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # Debian's, whatever else is installed


class Docker:
    """The client of a dockerd."""

    def __init__(self, socket: Path, home: Path, daemon: Daemon) -> None:
        self.host = f"unix://{socket}"
        self.daemon = daemon
        self.env = {
            "PATH": _PATH, "DOCKER_HOST": self.host, "DOCKER_CONFIG": str(home),
            "HOME": str(home),
        }  # fmt: skip

    def __call__(self, *argv: str | Path) -> str:
        """Run a command that must succeed; what it prints."""
        return support.run("/usr/bin/docker", *argv, env=self.env).stdout.decode()

    def lines(self, *argv: str | Path) -> list[str]:
        """The same, line by line, sorted."""
        return sorted(self(*argv).splitlines())

    def inspect(self, *names: str) -> list[dict[str, Any]]:
        """What it knows of images or containers."""
        found: list[dict[str, Any]] = json.loads(self("inspect", *names))
        return found


class Containerd:
    """A containerd, by its client ctr(8)."""

    def __init__(self, socket: Path, programs: Path | None = None) -> None:
        self.socket = socket
        self._ctr = _program("ctr", programs)
        self.root = socket.parent / "containerd"

    @property
    def content(self) -> Path:
        """Where its blobs are."""
        return self.root / "io.containerd.content.v1.content"

    def __call__(self, *argv: str | Path) -> str:
        """Run a command that must succeed; what it prints."""
        return support.run(self._ctr, "--address", self.socket, *argv).stdout.decode()


def need() -> None:
    """Ask for Debian's Docker."""
    need_containerd()
    if not Path("/usr/bin/docker").exists():
        support.missing("needs docker.io (not installed)")
    support.need("dockerd", "runc")
    support.need_filesystem("overlay")
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists() and not any(
        Path("/sys/fs/cgroup").glob("*/")
    ):
        pytest.skip("no cgroups are mounted, which runc needs")


def need_containerd() -> None:
    """Ask for Debian's containerd."""
    if not support.is_root():
        support.missing("needs root (with the right to mount)")
    support.need("containerd", "ctr")


def with_differs() -> Path:
    """Where a containerd is that takes differs from outside, 1.7: this machine's or Debian 13's.

    Its containers have the shim and the runc of this machine.

    Raises:
        debian.Unavailable: it can't be had.
    """
    installed = shutil.which("containerd")
    if installed is not None:
        told = subprocess.run([installed, "--version"], capture_output=True, check=True).stdout
        if re.search(rb" v?1\.7\.", told):
            return Path(installed).parent
    return debian.unpacked("containerd") / "usr/bin"


def _program(name: str, programs: Path | None) -> str:
    return name if programs is None else str(programs / name)


@contextmanager
def containerd() -> Iterator[Containerd]:
    """A containerd of which nothing stays."""
    need_containerd()
    with run_directory() as run, _containerd(run) as socket:
        found = Containerd(socket)
        found("version")
        yield found


@contextmanager
def containerd_at(
    run: Path,
    config: str = "",
    *,
    killed: list[subprocess.Popen[bytes]] | None = None,
    programs: Path | None = None,
) -> Iterator[Containerd]:
    """A containerd with its state in ``run`` (:func:`run_directory`), which it finds again there.

    ``config`` is added to its configuration; its process is appended to ``killed``, for who
    wants to kill it. ``programs`` is where it is, if it is not this machine's.
    """
    need_containerd()
    with _containerd(run, config, killed, programs) as socket:
        found = Containerd(socket, programs)
        found("version")
        yield found


@contextmanager
def run_directory() -> Iterator[Path]:
    """A directory with a short path: a socket's has 107 bytes at most, unlike one below TMPDIR."""
    with tempfile.TemporaryDirectory(prefix="lamina-tests-", dir="/run") as run:
        # Where a remapped root finds no way through dockerd makes another directory, for good.
        os.chmod(run, 0o711)
        yield Path(run)


@contextmanager
def _containerd(
    run: Path,
    more: str = "",
    killed: list[subprocess.Popen[bytes]] | None = None,
    programs: Path | None = None,
) -> Iterator[Path]:
    """A containerd with all of its state in ``run``; its socket."""
    socket = run / "c.sock"
    socket.unlink(missing_ok=True)  # of one that was killed
    config = run / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{run}/containerd"\nstate = "{run}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{socket}"\n{more}'
    )
    argv: list[str | Path] = [_program("containerd", programs), "--config", config]
    with _daemon(argv, socket, run / "containerd.log", killed):
        yield socket


@contextmanager
def dockerd(
    root: Path, driver: str = "overlay2", options: Sequence[str] = (), *, more: Sequence[str] = ()
) -> Iterator[Docker]:
    """A dockerd on ``root``; everything else of it goes at the end."""
    need()
    with ExitStack() as stack:
        run = stack.enter_context(run_directory())
        containerd = stack.enter_context(_containerd(run))
        (run / "daemon.json").write_text("{}")
        socket = run / "docker.sock"
        argv: list[str | Path] = [
            "dockerd", "--config-file", run / "daemon.json", "--host", f"unix://{socket}",
            "--data-root", root, "--exec-root", run / "exec", "--pidfile", run / "pid",
            "--containerd", containerd, "--storage-driver", driver,
            "--bridge=none", "--iptables=false", "--ip6tables=false",
            *(f"--storage-opt={option}" for option in options), *more,
        ]  # fmt: skip
        stack.callback(unmount_below, run, root)
        daemon = Daemon(argv, socket, run / "dockerd.log")
        docker = Docker(socket, run, daemon)
        stack.callback(daemon.stop)
        daemon.start()
        docker("version")
        yield docker


class Daemon:
    """A daemon that can be stopped or killed, and started again; its log is ``log``."""

    def __init__(self, argv: Sequence[str | Path], socket: Path, log: Path) -> None:
        self.log = log
        self._argv = argv
        self._socket = socket
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        """Start it, and wait for its socket; its process."""
        self._socket.unlink(missing_ok=True)
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                env={"PATH": _PATH, "HOME": "/root"},
            )  # fmt: skip
        if wait:
            self.wait()
        return self._process

    def wait(self) -> None:
        """Wait for its socket."""
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self._argv[0]} did not come up:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Let it end, if it runs."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None


@contextmanager
def _daemon(
    argv: Sequence[str | Path],
    socket: Path,
    log: Path,
    processes: list[subprocess.Popen[bytes]] | None = None,
) -> Iterator[None]:
    daemon = Daemon(argv, socket, log)
    try:
        process = daemon.start()
        if processes is not None:
            processes.append(process)
        yield
    finally:
        daemon.stop()


def unmount_below(*tops: Path) -> None:
    """What a dockerd leaves mounted: namespaces of networks and, killed, its own root."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for target in reversed([line.split()[4] for line in lines]):
        if any(f"{target}/".startswith(f"{os.path.realpath(top)}/") for top in tops):
            support.run("umount", "-l", target)
