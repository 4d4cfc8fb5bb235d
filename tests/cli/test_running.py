"""What the options of run and create make."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.root


def test_a_run_without_a_command_makes_no_container(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    said = cli.fails("run", tmp_path / "tree", status=125)
    assert said.startswith("run: no command given")
    assert cli.json("ps", "-a") == []
    cli("create", tmp_path / "tree")
    assert len(cli.json("ps", "-a")) == 1
