"""What README and the guide show is what happens: their examples are run.

A block of Python in README.md is executed. A ``console`` block of a document is a terminal
session: lines with ``$ `` (or ``# `` for root) are commands for bash, the lines after one are
what it prints. Ids, sizes, ages and the width of columns may differ; ``...`` stands for
anything. The sessions of a document follow each other in one directory, which has a
``debian.tar``, over one store. ``localhost:5000`` is a registry.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import lamina
from lamina.cli.app import VERBS
from lamina.drivers import registry

REPOSITORY = Path(__file__).resolve().parent.parent
REGISTRY = "localhost:5000"


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


VARYING = (
    (re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\bjust now\b|\b(\d+|about a) (second|minute)s? ago\b"), "AGE"),
    (re.compile(r"\b\d+(\.\d+)?[kMG]?B\b"), "SIZE"),
    (re.compile(r" +$", re.MULTILINE), ""),
    (re.compile(r" {2,}"), "  "),
)


def plain(text: str) -> str:
    """Output without what differs from run to run."""
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return text.strip("\n")


@dataclass
class Step:
    """A command, and the lines that are to follow."""

    command: str
    expected: list[str] = field(default_factory=list)

    def fits(self, output: str) -> bool:
        """Whether the output is as shown."""
        pattern = re.escape(plain("\n".join(self.expected))).replace(re.escape("..."), ".*")
        return re.fullmatch(pattern, plain(output), re.DOTALL) is not None


def steps(document: Path) -> Iterator[Step]:
    for block in blocks(document, "console"):
        step: Step | None = None
        for line in block.splitlines():
            if line.startswith(("$ ", "# ")):
                if step:
                    yield step
                step = Step(line[2:])
            elif step and step.command.endswith("\\") and not step.expected:
                step.command += f"\n{line.removeprefix('> ')}"
            else:
                assert step, f"{document}: output without a command: {line}"
                step.expected.append(line)
        if step:
            yield step


def test_the_reference_has_every_verb_in_its_table() -> None:
    table = (REPOSITORY / "docs/reference.md").read_text().partition("## Configuration")[0]
    assert [verb for verb in VERBS if f"`{verb}`" not in table] == []


@pytest.mark.parametrize("name", sorted(registry.names()))
def test_the_documents_for_users_have_every_driver(name: str) -> None:
    for document in ("README.md", "docs/serve.md", "docs/internals.md"):
        assert f"`{name}`" in (REPOSITORY / document).read_text(), document


@pytest.fixture
def session(tmp_path: Path, debian_root: Path, no_credentials: Path) -> dict[str, str]:
    """The environment of a terminal session: a store of its own, `lamina` in PATH."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/lamina"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lamina "$@"\n')
    command.chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/debian.tar").symlink_to(debian_root)
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY / "src"),
        "LAMINA_ROOT": str(tmp_path / "store"),
        "LAMINA_RUN_ROOT": str(tmp_path / "run"),
        "COLUMNS": "100",
        "TERM": "dumb",
    }


@pytest.mark.root
@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_sessions_go_as_shown(
    name: str, session: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shown = list(steps(REPOSITORY / name))
    assert shown
    host = REGISTRY
    if any(REGISTRY in step.command for step in shown):
        host = request.getfixturevalue("plain_registry").host
    for step in shown:
        done = subprocess.run(
            ["bash", "-c", step.command.replace(REGISTRY, host)],
            cwd=tmp_path / "work",
            env=session,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert "internal error" not in done.stdout
        expected = "\n".join(step.expected)
        said = done.stdout.replace(host, REGISTRY)
        assert step.fits(said), f"$ {step.command}\n{said}\n-- expected:\n{expected}"


@pytest.mark.root
def test_the_python_example_runs(
    tmp_path: Path,
    debian_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (example,) = blocks(REPOSITORY / "README.md", "python")
    (tmp_path / "debian.tar").symlink_to(debian_root)
    monkeypatch.chdir(tmp_path)
    with lamina.Store(tmp_path / "store", run=tmp_path / "run") as store:
        monkeypatch.setattr(lamina, "Store", lambda: store)
        exec(compile(example, "README.md", "exec"), {})
        assert [str(name) for image in store.images for name in image.names]
    assert capfd.readouterr().out.splitlines() == [
        "C /etc",
        "C /etc/hostname",
        "C /etc/motd",
    ]
