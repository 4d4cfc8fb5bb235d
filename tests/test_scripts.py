"""The scripts that set a machine up, as far as they can be tried on one that is set up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import support

REPOSITORY = Path(__file__).resolve().parent.parent
LIB = REPOSITORY / "scripts/lib.sh"


def bash(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run lines of bash after scripts/lib.sh."""
    return subprocess.run(
        ["bash", "-c", f". '{LIB}'\n{script}"],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def fake_venv(tmp_path: Path) -> str:
    """A virtual environment with a stamp that fits; as lines that choose it."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/usr/bin/env")
    done = bash(f'VENV={venv}; echo "$(requirements_hash) dev" >$VENV/lamina-stamp')
    assert (done.returncode, done.stderr) == (0, "")
    return f'VENV={venv}\nmake_venv() {{ echo made "$@"; }}\n'


def test_an_environment_that_fits_is_left_alone(fake_venv: str) -> None:
    done = bash(f"{fake_venv} ensure_venv; ensure_venv dev; echo $VENV")
    assert done.stdout.splitlines() == [fake_venv.split("\n")[0].removeprefix("VENV=")]


def test_an_environment_is_updated_when_requirements_have_changed(fake_venv: str) -> None:
    done = bash(f"{fake_venv} requirements_hash() {{ echo other; }}; ensure_venv dev")
    assert done.stdout == "made dev\n"


def test_an_environment_without_the_extras_is_updated(fake_venv: str) -> None:
    script = 'echo "$(requirements_hash) " >$VENV/lamina-stamp; ensure_venv; ensure_venv dev'
    assert bash(f"{fake_venv} {script}").stdout == "made dev\n"


def test_uv_is_not_used_on_a_machine_with_a_configuration_for_pip(tmp_path: Path) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    script = "use_uv && echo uv || echo pip"
    assert bash(script, PATH=path, HOME=str(tmp_path), PIP_CERT="/x").stdout == "pip\n"


def test_installed_packages_cost_no_look_at_the_network(tmp_path: Path) -> None:
    support.need("dpkg-query")
    done = bash("apt-get() { echo called; }; as_root() { echo called; }; ensure_packages tar bash")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_package_that_can_not_be_installed_is_named(tmp_path: Path) -> None:
    support.need("dpkg-query")
    done = bash("id() { echo 1000; }; have_sudo() { return 1; }; ensure_packages no-such-thing")
    assert done.returncode == 1
    assert "no root to install them: no-such-thing" in done.stderr


NO_PYTHON = """
find_python() { return 1; }
is_recent() { return 1; }
use_uv() { return 1; }
quietly() { echo "ran $*"; }
"""


def test_without_python_nothing_is_made_and_that_is_all_that_is_said(tmp_path: Path) -> None:
    script = f"id() {{ echo 1000; }}; VENV={tmp_path}/venv; ensure_venv; echo went on"
    done = bash(NO_PYTHON + script)
    assert (done.returncode, done.stdout) == (1, "")
    said = [line.partition(": ")[2] for line in done.stderr.splitlines()]
    assert said == [
        f"setting up {tmp_path}/venv (only needed once)",
        "needs Python 3.11 or newer: apt-get install python3",
        f"could not set up {tmp_path}/venv",
    ]


def test_root_has_python_installed() -> None:
    script = """
id() { echo 0; }
ensure_packages() { say "installing $*"; find_python() { echo /new/python3; }; }
ensure_python
"""
    done = bash(NO_PYTHON + script)
    assert (done.returncode, done.stdout) == (0, "/new/python3\n")
    assert done.stderr.endswith(": installing python3\n")


@pytest.mark.parametrize(
    "script",
    [
        "scripts/try",
        "scripts/test",
        "scripts/aufs-kernel",
        "scripts/verity-kernel",
        "scripts/machine.sh",
        "scripts/lib.sh",
        ".ci/run",
    ],
)
def test_a_script_is_bash_that_parses(script: str) -> None:
    assert support.run("bash", "-n", REPOSITORY / script).stderr == b""
