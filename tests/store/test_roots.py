"""Directories that are someone else's: a store is not begun there, and nothing in them goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.errors import StoreError
from lamina.store import Store
from tests.store.conftest import MakeStore


def _everything(root: Path) -> set[Path]:
    return set(root.rglob("*"))


@pytest.mark.parametrize(
    "part", ["image/overlay2/layerdb/sha256", f"containers/{'a' * 64}/config.v2.json"]
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_docker_root_is_no_store(tmp_path: Path, part: str, begun: bool) -> None:
    root = tmp_path / "docker"
    if begun:  # by a Lamina that did not look
        Store(root, run=tmp_path / "run", driver="vfs").close()
    (root / part).parent.mkdir(parents=True)
    (root / part).touch()
    before = _everything(root)
    with pytest.raises(StoreError, match=r"docker is a Docker root .*'lamina adopt "):
        Store(root, run=tmp_path / "run")
    assert _everything(root) == before


def test_layers_that_were_there_before_the_store_are_none_of_its(tmp_path: Path) -> None:
    theirs = tmp_path / "root/vfs/layers/theirs/diff/file"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    (theirs.parents[1] / "parents").touch()
    with Store(tmp_path / "root", run=tmp_path / "run", driver="vfs") as store:
        problems = store.check(repair=True)
        assert [(problem.kind, problem.id, problem.repaired) for problem in problems] == [
            ("driver", "vfs", False)
        ]
        assert store.prune(containers=True, unused=True).layers == []
        with pytest.raises(StoreError, match="vfs has layers that this store did not make"):
            _ = store.driver
    assert theirs.exists()


def test_a_store_knows_its_layers_whose_rows_are_all_gone(
    open_store: MakeStore, driver: str
) -> None:
    open_store().driver.create("lost")  # type: ignore[arg-type]
    other = open_store()
    assert other.driver.name == driver
    assert other.prune().layers == ["lost"]
    assert other.check() == []
