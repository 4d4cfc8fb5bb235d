"""Equal files in several layers are found, and share blocks where the file system can."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.errors import StoreError
from lamina.progress import Progress
from lamina.store import Store
from tests.store.conftest import tar
from tests.support import need_filesystem

pytestmark = pytest.mark.root

MIB = 1 << 20
Open = Callable[[Path, str], Store]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    need_filesystem("erofs")
    opened: list[Store] = []

    def open_store(place: Path, driver: str) -> Store:
        opened.append(Store(place / "root", run=tmp_path / "run", driver=driver))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


def _free(place: Path) -> int:
    os.sync()
    status = os.statvfs(place)
    return status.f_bfree * status.f_frsize


def _fill(store: Store, big: bytes) -> None:
    """Three layers with the file ``big``: twice at one place in a block, once at another."""
    for number, files in enumerate(
        ({"a": big, "one": b"1"}, {"b": big, "two": b"2"}, {"first": b"x" * 10, "c": big})
    ):
        store.import_tar(io.BytesIO(tar({**files})), f"image{number}")


@pytest.mark.parametrize("driver", ["erofs", "overlay", "vfs"])
def test_equal_files_are_counted(driver: str, open_store: Open, tmp_path: Path) -> None:
    store = open_store(tmp_path, driver)
    big = os.urandom(MIB)
    _fill(store, big)
    store.import_tar(io.BytesIO(tar({"d": big[:-1] + b"x", "x": b"same", "y": b"same"})), "other")
    told: list[Progress] = []
    found = store.sharing(progress=told.append)
    assert (found.files, found.copies, found.size) == (1, 2, 2 * MIB)
    if driver == "erofs":
        assert found.sharable == MIB - 4096, "two of the three, but for the blocks at its ends"
    else:
        assert found.sharable == 2 * MIB
    assert told[-1].done == told[-1].total


@pytest.mark.parametrize("driver", ["erofs", "overlay"])
@pytest.mark.parametrize("place", ["xfs", "btrfs"])
def test_equal_files_share_blocks(
    driver: str, place: str, open_store: Open, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(place)
    store = open_store(directory, driver)
    big = os.urandom(20 * MIB + 5000)
    _fill(store, big)
    expected = store.sharing().sharable
    if driver == "overlay":
        assert expected == 2 * len(big)
    elif place == "btrfs":
        assert expected == 0, "the extents of tars would keep their room"
    else:
        assert expected > 19 * MIB
    before = _free(directory)
    done = store.dedup()
    assert done.size == expected
    assert not expected or _free(directory) - before > expected - MIB
    assert store.dedup().size == expected, "again: nothing more to share, and no error"
    assert store.check(contents=True) == []
    with store.container("image1") as box:
        assert (box.root / "b").read_bytes() == big


@pytest.mark.parametrize("place", ["xfs", "btrfs"])
def test_the_same_tar_in_two_chains_is_shared_whole(
    place: str, open_store: Open, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(place)
    store = open_store(directory, "erofs")
    same = tar({f"f{number}": os.urandom(3000) for number in range(2000)})
    with store.work() as work:
        for name in ("one", "two"):
            below = store.layers.register(io.BytesIO(tar({name: b"1"})), work=work)
            store.layers.register(io.BytesIO(same), below, work=work)
        before = _free(directory)
        assert store.dedup().size >= len(same)
        assert _free(directory) - before > len(same) * 9 // 10


@pytest.mark.parametrize(("place", "name"), [("ext4", "extfs"), ("tmpfs_small", "tmpfs")])
def test_other_file_systems_are_refused(
    place: str, name: str, open_store: Open, request: pytest.FixtureRequest
) -> None:
    with (
        open_store(request.getfixturevalue(place), "overlay") as store,
        pytest.raises(StoreError, match=f"files on {name} can't share blocks"),
    ):
        store.dedup()
