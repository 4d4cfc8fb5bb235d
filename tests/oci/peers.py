"""The other programs that read and write images, each kept to directories of the tests' own."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import support

_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


class Skopeo:
    """skopeo(1)."""

    def __init__(self, ground: Path) -> None:
        support.need("skopeo")
        self.policy = ground / "policy.json"
        self.policy.write_text(json.dumps(_POLICY))

    def __call__(self, *argv: str | Path) -> str:
        return support.run("skopeo", "--policy", self.policy, *argv).stdout.decode()

    def copy(self, source: str, target: str, *options: str) -> None:
        """``skopeo copy``; all platforms or none of an index."""
        self("copy", *options, source, target)

    def inspect(self, image: str) -> dict[str, Any]:
        """What it says of an image."""
        found: dict[str, Any] = json.loads(self("inspect", image))
        return found

    def diff_ids(self, image: str) -> list[str]:
        """Its layers' DiffIDs."""
        config = json.loads(self("inspect", "--config", image))
        found: list[str] = config["rootfs"]["diff_ids"]
        return found


class Podman:
    """podman(1) on a store of its own; :func:`podman` makes one."""

    def __init__(self, root: Path, run: str, policy: Path, driver: str) -> None:
        self._store: list[str | Path] = [
            "--root", root, "--runroot", run, "--storage-driver", driver, "--log-level", "error",
        ]  # fmt: skip
        self._options = [*self._store, "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        self.policy = policy

    def __call__(self, *argv: str | Path) -> str:
        return support.run("podman", *self._options, *argv).stdout.decode()

    def buildah(self, verb: str, *argv: str | Path) -> str:
        """buildah(1) on the same store."""
        support.need("buildah")
        if verb in ("from", "pull", "push", "commit"):
            argv = ("--signature-policy", self.policy, *argv)
        return support.run("buildah", *self._store, verb, *argv).stdout.decode()

    def load(self, archive: str | Path) -> None:
        """``podman load``."""
        with _without_capitals(Path(archive)) as given:
            self("load", "--signature-policy", self.policy, "-i", given)

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The tree of an image."""
        yield Path(self("image", "mount", image).strip())
        self("image", "unmount", image)

    def names(self) -> list[str]:
        """All names in its store."""
        return sorted(self("images", "--format", "{{.Repository}}:{{.Tag}}").split())

    def diff_ids(self, image: str) -> list[str]:
        """An image's DiffIDs."""
        found: list[str] = json.loads(self("inspect", image))[0]["RootFS"]["Layers"]
        return found


@contextmanager
def _without_capitals(path: Path) -> Iterator[Path]:
    """Another path of a directory: podman takes it for a name, in which there are none."""
    if not path.is_dir():
        yield path
        return
    link = Path(f"/run/lamina-tests-{os.urandom(4).hex()}")
    link.symlink_to(path.absolute())
    try:
        yield link
    finally:
        link.unlink()


@contextmanager
def podman(ground: Path, driver: str = "vfs") -> Iterator[Podman]:
    """A podman whose store goes at the end."""
    if not support.is_root():
        support.missing("needs root (with the right to mount)")
    support.need("podman")
    policy = ground / "policy.json"
    policy.write_text(json.dumps(_POLICY))
    home = ground / "podman"
    # The path of its run root has 50 characters at most, unlike one below TMPDIR.
    with tempfile.TemporaryDirectory(prefix="lamina-tests-", dir="/run") as run:
        found = Podman(home, run, policy, driver)
        try:
            yield found
        finally:
            found("rmi", "--all", "--force")
            for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
                if line.split()[4].startswith((f"{home}/", f"{run}/")):
                    support.run("umount", line.split()[4])
