"""The peers that keep images, each with everything it keeps on the measured file system."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

from benchmarks import daemons
from benchmarks.ground import Ground, output, tool
from benchmarks.measure import Run, timed
from lamina.kernel.mount import unmount
from lamina.kernel.remove import remove_tree

PROOF = "etc/debian_version"
"""A file of the image: one that is mountable has it."""


class Docker:
    """The client of a dockerd."""

    def __init__(self, ground: Ground, env: dict[str, str]) -> None:
        self._ground = ground
        self._env = env
        self.client = daemons.docker_client()
        self.version, _ = daemons.versions()

    def __call__(self, *argv: str | Path) -> None:
        """A command that must succeed."""
        tool(self.client, *argv, env=self._env)

    def pipe(self, *argv: str | Path, into: str) -> None:
        """A command, and what it prints through a line of shell."""
        script = f'set -o pipefail; "$@" | {into}'
        tool("bash", "-c", script, "bash", self.client, *argv, env=self._env)

    def check(self, image: str) -> None:
        """See that a container of the image has its files."""
        self("create", "--name", "check", image, "true")
        target = self._ground.fresh("check")
        self("cp", f"check:/{PROOF}", target)
        target.unlink()
        self("rm", "check")

    def remove(self, image: str) -> None:
        """Remove an image with its layers."""
        self("rmi", "--force", image)


class Podman:
    """Podman, with a storage of its own, by overlayfs."""

    def __init__(self, ground: Ground) -> None:
        self.root = ground.fresh("podman")
        run = ground.run / self.root.name
        scratch = ground.fresh("podman-tmp")
        scratch.mkdir()
        self.argv: tuple[str | Path, ...] = (
            "podman", "--root", self.root, "--runroot", run / "run", "--tmpdir", run / "tmp",
            "--storage-driver", "overlay", "--log-level", "error",
        )  # fmt: skip
        self._env = {**os.environ, "TMPDIR": str(scratch)}
        self.version = "podman " + output("podman", "--version").split()[2]

    def __call__(self, *argv: str | Path) -> None:
        """A command that must succeed."""
        tool(*self.argv, *argv, env=self._env)

    def peak(self, *argv: str | Path) -> float:
        """Run a command; the most memory that it had resident, MiB."""
        process = subprocess.Popen(
            [*self.argv, *argv],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self._env,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise SystemExit(f"podman {argv[0]} failed with {process.returncode}")
        return usage.ru_maxrss / 1024

    def check(self, image: str) -> None:
        """See that the image, mounted, has its files."""
        done = subprocess.run(
            [*self.argv, "image", "mount", image],
            capture_output=True, check=True, text=True, env=self._env,
        )  # fmt: skip
        assert (Path(done.stdout.strip()) / PROOF).is_file()
        self("image", "umount", image)

    def remove(self, image: str) -> None:
        """Remove an image with its layers."""
        self("rmi", "--force", image)

    def close(self) -> None:
        """Give back its storage, which podman leaves mounted on itself."""
        storage = f"{self.root}/overlay"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4] == storage:
                unmount(storage, lazy=True)
        remove_tree(self.root)


class Umoci:
    """umoci, which unpacks images from layouts and keeps none."""

    def __init__(self) -> None:
        self.version = " ".join(output("umoci", "--version").split())

    def unpack(self, image: str, bundle: Path) -> None:
        """Unpack an image of a layout into a new bundle."""
        tool("umoci", "unpack", "--image", image, bundle)

    def check(self, bundle: Path) -> None:
        """See that the root is there."""
        assert (bundle / "rootfs" / PROOF).is_file()

    def run(self, image: str, ground: Ground) -> Run:
        """Unpacking it, checking and removing what came of it."""

        def run() -> float:
            bundle = ground.fresh("bundle")
            seconds = timed(partial(self.unpack, image, bundle))
            self.check(bundle)
            remove_tree(bundle)
            return seconds

        return run


def bringing(peer: Docker | Podman, name: str, *command: str | Path) -> Run:
    """A command that brings an image, which goes again after it."""

    def run() -> float:
        seconds = timed(partial(peer, *command))
        peer.check(name)
        peer.remove(name)
        return seconds

    return run
