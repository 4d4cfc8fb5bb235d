from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.store.leases import Leases
from tests.store import children


def test_a_living_lease_is_not_found_dead(tmp_path: Path) -> None:
    one, two = Leases(tmp_path), Leases(tmp_path)
    token = one.token
    with two.dead([]) as dead:
        assert dead == []
    one.close()
    with two.dead([token]) as dead:
        assert dead == [token], "mentioned in a table, no longer on disk"
    two.close()
    assert os.listdir(tmp_path) == []


def test_what_a_dead_process_staged_is_deleted(tmp_path: Path) -> None:
    code = """
        import pathlib, signal, sys
        from lamina.store.leases import Leases
        leases = Leases(pathlib.Path(sys.argv[1]))
        with leases.path() as path:
            path.write_bytes(b"half")
            print(leases.token, flush=True)
            signal.pause()
    """
    with children.start(code, tmp_path, stdout=children.PIPE) as child:
        assert child.stdout is not None
        token = child.stdout.readline().decode().strip()
        mine = Leases(tmp_path)
        with mine.dead([token]) as dead:
            assert dead == []
        child.kill()
    with mine.dead([]) as dead:
        assert dead == [token]
    assert os.listdir(tmp_path) == []


def test_an_interrupted_sweep_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    leases = Leases(tmp_path)
    with pytest.raises(KeyboardInterrupt), leases.dead([]):
        raise KeyboardInterrupt
    with leases.dead([]) as dead:
        assert dead == ["gone"]


def test_two_sweepers_share_the_work(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    one, two = Leases(tmp_path), Leases(tmp_path)
    with one.dead([]) as mine, two.dead([]) as others:
        assert mine == ["gone"]
        assert others == []


def test_a_staged_thing_goes_with_its_block(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    with leases.path() as path:
        path.mkdir()
        (path / "x").write_bytes(b"")
    assert not path.exists()
    leases.close()
