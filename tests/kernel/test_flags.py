"""Inode flags, against chattr and lsattr."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.kernel import flags
from tests.support import need, run


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDONLY)
    try:
        flags.get(fd)
    except OSError as error:
        pytest.skip(f"no inode flags here: {error}")
    yield fd
    os.close(fd)


def test_what_is_set_is_what_lsattr_shows(fd: int, tmp_path: Path) -> None:
    need("lsattr")
    flags.set(fd, flags.get(fd) | flags.FS_NODUMP_FL)
    assert flags.get(fd) & flags.FS_NODUMP_FL
    assert b"d" in run("lsattr", tmp_path / "file").stdout.split()[0]


@pytest.mark.root
@pytest.mark.parametrize("flag", ["+i", "+a"])
def test_protection_by_chattr_is_seen_and_cleared(fd: int, tmp_path: Path, flag: str) -> None:
    need("chattr")
    run("chattr", flag, tmp_path / "file")
    assert flags.unprotect(fd)
    assert not flags.unprotect(fd)
    (tmp_path / "file").unlink()
