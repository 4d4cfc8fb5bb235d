"""What tests of indexes stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archive.erofs import indexes
from tests.support import need_filesystem


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs: takes every attribute and any time. Indexes on it are mounted by loop devices."""
    need_filesystem("erofs")
    with indexes.memory(tmp_path / "memory") as place:
        yield place
