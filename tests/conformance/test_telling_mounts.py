"""What a driver tells others to mount shows the layer, and what it tells of usage holds."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lamina.drivers import Driver
from lamina.errors import LayerInUse, LayerNotFound
from lamina.types import LayerId
from tests.conformance.conftest import Factory
from tests.mounting import mounted

BASE, APP, BOX = LayerId("base"), LayerId("app"), LayerId("box")


@pytest.fixture
def image(driver: Driver) -> Driver:
    """Two layers, the upper of which deletes a file of the lower and replaces one."""
    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root:
        (root / "kept").write_text("base")
        (root / "replaced").write_text("base")
        (root / "deleted").write_text("base")
    driver.create_read_write(APP, BASE)
    with driver.mounted(APP) as root:
        (root / "deleted").unlink()
        (root / "replaced").write_text("app")
    return driver


def names(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir()}


def refuse_writes(root: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (root / "new").write_text("new")


def test_a_layer_is_seen_and_written_through_its_mounts(image: Driver, tmp_path: Path) -> None:
    image.create_read_write(BOX, APP)
    with mounted(image.mounts(BOX), tmp_path / "m") as root:
        assert names(root) == {"kept", "replaced"}
        (root / "new").write_text("box")
        (root / "kept").unlink()
    image.release_mounts(BOX)
    changes = {change.path for change in image.changes(BOX, APP)}
    assert changes == {b"new", b"kept"} or changes == {b"/new", b"/kept"}


def test_a_layer_without_parent_is_written_through_its_mounts(
    driver: Driver, tmp_path: Path
) -> None:
    driver.create_read_write(BASE)
    with mounted(driver.mounts(BASE), tmp_path / "m") as root:
        (root / "new").write_text("base")
    driver.release_mounts(BASE)
    with driver.mounted(BASE) as root:
        assert (root / "new").read_text() == "base"


@pytest.mark.parametrize("id", [BASE, APP])
def test_read_only_mounts_refuse_writes(image: Driver, tmp_path: Path, id: LayerId) -> None:
    mounts = image.mounts(id, readonly=True)
    with mounted(mounts, tmp_path / "m") as root:
        assert (root / "replaced").read_text() == id
        refuse_writes(root)
    image.release_mounts(id)


def test_a_layer_with_children_refuses_writes(image: Driver, tmp_path: Path) -> None:
    image.create_read_write(BOX, APP)
    with mounted(image.mounts(APP), tmp_path / "m") as root:
        refuse_writes(root)
    image.release_mounts(APP)


def test_two_read_only_mounts_share_a_layer_with_a_writable_one_above(
    image: Driver, tmp_path: Path
) -> None:
    image.create_read_write(BOX, APP)
    view = image.mounts(APP, readonly=True)
    with (
        mounted(view, tmp_path / "one") as one,
        mounted(image.mounts(APP, readonly=True), tmp_path / "two") as two,
        mounted(image.mounts(BOX), tmp_path / "box") as box,
    ):
        (box / "kept").write_text("box")
        assert (one / "kept").read_text() == (two / "kept").read_text() == "base"
    image.release_mounts(APP)
    image.release_mounts(BOX)


def test_mounts_told_by_a_process_that_died_still_hold(
    factory: Factory, image: Driver, tmp_path: Path
) -> None:
    image.create_read_write(BOX, APP)
    with mounted(image.mounts(BOX), tmp_path / "m") as root:
        (root / "new").write_text("before")
        image.close()
        again = factory.make()
        with mounted(again.mounts(BOX), tmp_path / "again") as same:
            assert (same / "new").read_text() == "before"
    again.release_mounts(BOX)
    again.remove(BOX)
    assert not again.exists(BOX)


def test_a_layer_can_be_removed_after_its_mounts_were_released(image: Driver) -> None:
    image.create_read_write(BOX, APP)
    for _ in range(3):
        image.mounts(BOX)
    image.release_mounts(BOX)
    image.remove(BOX)
    assert not image.exists(BOX)


def test_releasing_what_was_never_told_is_no_error(image: Driver) -> None:
    image.release_mounts(APP)


def test_a_layer_that_is_not_there_has_no_mounts(driver: Driver) -> None:
    with pytest.raises(LayerNotFound):
        driver.mounts(BOX)


def test_a_layer_with_children_is_not_removed_under_them(image: Driver) -> None:
    with pytest.raises(LayerInUse):
        image.remove(BASE)


def test_128_layers_are_seen(driver: Driver, tmp_path: Path) -> None:
    parent = None
    for number in range(128):
        id = LayerId(str(number))
        driver.create_read_write(id, parent)
        if number % 16 == 0:
            with driver.mounted(id) as root:
                (root / f"file-{number}").write_text(id)
        parent = id
    assert parent is not None
    with mounted(driver.mounts(parent), tmp_path / "m") as root:
        assert names(root) == {f"file-{number}" for number in range(0, 128, 16)}
    driver.release_mounts(parent)


def test_usage_counts_what_the_layer_holds(image: Driver) -> None:
    image.create_read_write(BOX, APP)
    before = image.usage(BOX)
    with image.mounted(BOX) as root:
        (root / "big").write_bytes(os.urandom(100_000))
        (root / "link").hardlink_to(root / "big")
    after = image.usage(BOX)
    assert 100_000 <= after.size - before.size < 130_000
    assert after.inodes - before.inodes in (1, 2)  # fuse-overlayfs keeps marks of links


def test_usage_of_a_layer_that_is_not_there(driver: Driver) -> None:
    with pytest.raises(LayerNotFound):
        driver.usage(BOX)
