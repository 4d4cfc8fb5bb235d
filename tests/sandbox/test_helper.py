from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamina.errors import CommandNotFound
from lamina.sandbox.helper import Helper
from lamina.sandbox.run import run
from tests.sandbox.roots import make_small_root

pytestmark = pytest.mark.root


def children() -> set[int]:
    return {int(p) for p in Path("/proc/thread-self/children").read_text().split()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_small_root(tmp_path / "root", ["sh", "cat", "env"])
    return tmp_path / "root"


def test_a_helper_may_be_started_long_before(root: Path) -> None:
    with Helper("init", stdout=subprocess.PIPE) as helper:
        time.sleep(0.3)
        done = run(root, ["sh", "-c", "echo $A; exit 3"], env={"A": "later"}, helper=helper)
    assert (done.stdout, done.returncode) == (b"later\n", 3)


def test_one_that_is_told_nothing_is_gone_at_the_end() -> None:
    before = children()
    with Helper("init"):
        assert children() > before
    assert children() == before
    with pytest.raises(ZeroDivisionError), Helper("init", stdout=subprocess.PIPE):
        raise ZeroDivisionError
    assert children() == before


def test_one_whose_caller_died_before_it_was_told_anything_is_silent_and_gone() -> None:
    source = """
import os, signal
from lamina.sandbox.helper import Helper
Helper("init")
os.kill(os.getpid(), signal.SIGKILL)
"""
    argv = [sys.executable, "-c", source]
    done = subprocess.run(argv, check=False, timeout=60, stderr=subprocess.PIPE)  # until it ends
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")


def test_a_spec_may_be_larger_than_a_pipe(root: Path) -> None:
    env = {f"A{n}": "x" * 1000 for n in range(500)}
    done = run(root, ["env"], env=env, stdout=subprocess.PIPE)
    assert done.stdout is not None
    assert sum(line.startswith(b"A") for line in done.stdout.splitlines()) == 500


def test_one_that_was_killed_has_that_as_its_status(root: Path) -> None:
    before = children()
    with Helper("init") as helper:
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        env = {f"A{n}": "x" * 1000 for n in range(500)}
        assert run(root, ["env"], env=env, helper=helper).returncode == -signal.SIGKILL


def test_an_error_comes_from_a_helper_started_before(root: Path) -> None:
    with pytest.raises(CommandNotFound), Helper("init") as helper:
        run(root, ["nothing"], helper=helper)
