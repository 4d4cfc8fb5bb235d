"""Lock files that whoever holds them may delete."""

from __future__ import annotations

import os
from pathlib import Path

from lamina.kernel.lock import try_lock, unlock


def test_a_lock_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first = try_lock(path)
    assert first is not None
    assert try_lock(path) is None
    unlock(first)
    again = try_lock(path)
    assert again is not None
    unlock(again)


def test_unlocking_frees_it_though_a_forked_child_has_a_copy(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    mine = try_lock(path)
    assert mine is not None
    copy = os.dup(mine)  # as a child has it between fork(2) and exec
    unlock(mine)
    other = try_lock(path)
    os.close(copy)
    assert other is not None
    unlock(other)
