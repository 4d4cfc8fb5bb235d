"""Locks of transfers are given up, whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.kernel.lock import try_lock, unlock
from lamina.store.transfer.stopping import Stop, Stopped, locked, locked_now


def test_a_lock_is_given_up_even_if_its_file_can_not_be_deleted(tmp_path: Path) -> None:
    path, moved = tmp_path / "lock", tmp_path / "moved"
    with pytest.raises(FileNotFoundError), locked(str(path), Stop()):
        path.rename(moved)
    lock = try_lock(str(moved))
    assert lock is not None
    unlock(lock)


def test_a_lock_that_is_taken_is_waited_for_until_the_work_ends(tmp_path: Path) -> None:
    path, stop = str(tmp_path / "lock"), Stop()
    with locked_now(path) as ours:
        assert ours
        with locked_now(path) as too:
            assert not too
        stop.set()
        with pytest.raises(Stopped), locked(path, stop):
            pass
    with locked_now(path) as ours:
        assert ours
    assert not (tmp_path / "lock").exists()
