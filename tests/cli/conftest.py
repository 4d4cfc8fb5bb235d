"""The command, as a process of its own or called in this one, over a store of each test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.oci import peers
from tests.sandbox.roots import make_small_root

SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(slots=True)
class Cli:
    """``lamina`` over one store."""

    env: dict[str, str]
    root: Path
    run_root: Path

    def process(
        self, *args: str | Path, env: Mapping[str, str] = {}, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run it as a user would; never fails by itself."""
        options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
        if options["stdin"] is None:
            del options["stdin"]
        return subprocess.run(
            self.argv(*args),
            env={**self.env, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            **options,
        )

    def argv(self, *args: str | Path) -> list[str]:
        """The command line of a process."""
        return [sys.executable, "-m", "lamina", *map(str, args)]

    def __call__(self, *args: str | Path, status: int = 0, **options: Any) -> str:
        """What it prints, when it must end with this status."""
        done = self.process(*args, **options)
        assert done.returncode == status, f"lamina {args}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def fails(self, *args: str | Path, status: int = 1, **options: Any) -> str:
        """The one line that it says on stderr, when it must fail with this status."""
        done = self.process(*args, **options)
        assert (done.returncode, done.stdout) == (status, ""), done
        lines = done.stderr.splitlines()
        assert len(lines) == 1, f"errors are one line: {lines}"
        assert lines[0].startswith("lamina: ")
        return lines[0].removeprefix("lamina: ")

    def json(self, *args: str | Path) -> Any:
        """What it prints with ``--format json``."""
        return json.loads(self(*args, "--format", "json"))


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command over an empty store, with no configuration but the test's."""
    root, run_root = tmp_path / "store", tmp_path / "run"
    env = {k: v for k, v in os.environ.items() if not k.startswith("LAMINA_")}
    env |= {
        "LAMINA_ROOT": str(root),
        "LAMINA_RUN_ROOT": str(run_root),
        "PYTHONPATH": str(SOURCE),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "COLUMNS": "100",
    }
    return Cli(env, root, run_root)


@pytest.fixture(scope="session")
def small_tar(ground: Path) -> Path:
    """The tar of a root with a shell and a few programs in it."""
    root, target = ground / "small-root", ground / "small.tar"
    make_small_root(root)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/motd").write_text("welcome\n")
    (root / "etc/gone").write_text("x")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nann:x:1000:\n")
    subprocess.run(["tar", "-C", root, "-cf", target, "."], check=True)
    return target


@pytest.fixture
def image(cli: Cli, small_tar: Path) -> str:
    """The name of an image made of :func:`small_tar`."""
    cli("import", small_tar, "small:1")
    return "small:1"


@pytest.fixture
def skopeo(tmp_path: Path) -> peers.Skopeo:
    """skopeo(1)."""
    return peers.Skopeo(tmp_path)
