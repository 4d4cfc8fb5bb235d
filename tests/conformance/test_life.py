"""Layers come, stand on each other, and go."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lamina.drivers import Driver
from lamina.errors import (
    InvalidArchive,
    InvalidName,
    LaminaError,
    LayerExists,
    LayerInUse,
    LayerNotFound,
    OptionUnsupported,
)
from lamina.types import LayerId
from tests.conformance.conftest import Factory
from tests.conformance.trees import tar

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

BASE, SNAP, TOP = LayerId("base"), LayerId("snap"), LayerId("top")

BAD_IDS = ["", ".", "..", "a/b", "../x", "/abs", "nul\0", "new\nline", "x" * 201, "-dash", "é"]


def test_an_empty_layer_is_an_empty_directory_0755_owned_by_root(driver: Driver) -> None:
    driver.create(BASE)
    with driver.mounted(BASE) as root:
        status = root.stat()
        assert stat.S_IMODE(status.st_mode) == 0o755
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
        assert list(root.iterdir()) == []


def test_what_is_created_exists_and_what_is_removed_does_not(driver: Driver) -> None:
    assert not driver.exists(BASE)
    driver.create(BASE)
    assert driver.exists(BASE)
    assert list(driver.ids()) == [BASE]
    driver.remove(BASE)
    assert not driver.exists(BASE)
    assert list(driver.ids()) == []


def test_removing_twice_is_fine(driver: Driver) -> None:
    driver.create(BASE)
    driver.remove(BASE)
    driver.remove(BASE)


def test_an_id_can_be_used_again_after_removal(driver: Driver) -> None:
    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root:
        (root / "old").touch()
    driver.remove(BASE)
    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root:
        assert list(root.iterdir()) == []


def test_a_snapshot_shows_its_base_and_keeps_its_own_changes(driver: Driver) -> None:
    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root:
        (root / "a").write_text("base")
        (root / "dir").mkdir()
        (root / "dir/b").write_text("base")
    driver.create_read_write(SNAP, BASE)
    with driver.mounted(SNAP) as root:
        assert (root / "a").read_text() == "base"
        (root / "a").write_text("snap")
        (root / "dir/b").unlink()
        (root / "c").write_text("snap")
    with driver.mounted(SNAP) as root:
        assert (root / "a").read_text() == "snap"
        assert sorted(p.name for p in root.rglob("*")) == ["a", "c", "dir"]
    with driver.mounted(BASE) as root:
        assert (root / "a").read_text() == "base"
        assert sorted(p.name for p in root.rglob("*")) == ["a", "b", "dir"]


def test_parent_names_the_direct_parent(driver: Driver) -> None:
    driver.create(BASE)
    driver.create(SNAP, BASE)
    driver.create(TOP, SNAP)
    assert [driver.parent(id) for id in (BASE, SNAP, TOP)] == [None, BASE, SNAP]


def test_the_root_of_a_layer_looks_like_that_of_its_parent(driver: Driver) -> None:
    if driver.name == "aufs":
        pytest.skip("AUFS layers are made 0755, as Docker makes them")
    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root:
        root.chmod(0o751)
    driver.create_read_write(SNAP, BASE)
    with driver.mounted(SNAP) as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o751


def test_a_layer_twice_is_refused(driver: Driver) -> None:
    driver.create(BASE)
    with pytest.raises(LayerExists):
        driver.create(BASE)
    with pytest.raises(LayerExists):
        driver.create_read_write(BASE)


def test_an_unknown_parent_is_refused_and_leaves_nothing(driver: Driver) -> None:
    with pytest.raises(LayerNotFound):
        driver.create(SNAP, BASE)
    with pytest.raises(LayerNotFound):
        driver.create_read_write(SNAP, BASE)
    assert list(driver.ids()) == []


def test_an_unknown_layer_is_named_in_the_error(driver: Driver) -> None:
    for call in (driver.get, driver.parent, driver.metadata, driver.changes, driver.diff):
        with pytest.raises(LayerNotFound, match="no such layer: nowhere"):
            call(LayerId("nowhere"))
    with pytest.raises(LayerNotFound):
        driver.apply_diff(LayerId("nowhere"), None, tar("a"))


@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_id_that_is_no_plain_name_is_refused_by_every_call(driver: Driver, bad: str) -> None:
    id = LayerId(bad)
    for call in (driver.create, driver.create_read_write, driver.get, driver.remove, driver.put):
        with pytest.raises((InvalidName, LayerNotFound)):
            call(id)
    driver.create(BASE)
    with pytest.raises((InvalidName, LayerNotFound)):
        driver.create(SNAP, id)
    assert list(driver.ids()) == [BASE]


def test_a_removal_can_not_reach_outside_the_home(driver: Driver, factory: Factory) -> None:
    precious = factory.home.parent / "precious"
    precious.mkdir()
    mode = precious.stat().st_mode
    for bad in ("../../precious", "../precious", "..", str(precious)):
        with pytest.raises(LaminaError):
            driver.remove(LayerId(bad))
    assert precious.stat().st_mode == mode


def test_an_unknown_storage_option_is_refused(driver: Driver) -> None:
    with pytest.raises(OptionUnsupported, match="no storage option 'colour'"):
        driver.create_read_write(BASE, options={"colour": "red"})
    assert not driver.exists(BASE)


def test_a_parent_with_children_stays(driver: Driver) -> None:
    driver.create(BASE)
    driver.create(SNAP, BASE)
    with pytest.raises(LayerInUse, match="child"):
        driver.remove(BASE)
    assert driver.exists(BASE)
    driver.remove(SNAP)
    driver.remove(BASE)
    assert list(driver.ids()) == []


def test_a_refused_removal_leaves_the_mount(driver: Driver) -> None:
    driver.create(BASE)
    driver.create(SNAP, BASE)
    driver.create(TOP, SNAP)
    root = driver.get(SNAP)
    mounted = os.path.ismount(root)
    with pytest.raises(LayerInUse, match="child"):
        driver.remove(SNAP)
    assert os.path.ismount(root) is mounted
    driver.get(SNAP)
    driver.put(SNAP)
    assert os.path.ismount(root) is mounted, "the first reference must still count"
    driver.put(SNAP)
    assert not os.path.ismount(root)


def test_a_layer_mounted_here_is_unmounted_and_removed(driver: Driver) -> None:
    driver.create(BASE)
    driver.create_read_write(SNAP, BASE)
    root = driver.get(SNAP)
    (root / "file").touch()
    driver.remove(SNAP)
    assert not driver.exists(SNAP)
    assert not os.path.ismount(root)


@pytest.fixture
def stands_on_directories(driver: Driver) -> None:
    """Not every layout can say that a layer stands on a directory that is no layer."""
    if driver.name == "aufs":
        with pytest.raises(OptionUnsupported, match="no storage option 'base'"):
            driver.create_read_write(SNAP, options={"base": "/"})
        pytest.skip("Docker's AUFS layout has no place for a base directory")


@pytest.mark.usefixtures("stands_on_directories")
def test_a_base_directory_shows_below_and_stays_as_it_is(driver: Driver, tmp_path: Path) -> None:
    base = tmp_path / "some dir"
    base.mkdir()
    (base / "kept").write_text("kept")
    (base / "deleted").write_text("deleted")
    driver.create_read_write(SNAP, options={"base": str(base)})
    with driver.mounted(SNAP) as root:
        assert (root / "kept").read_text() == "kept"
        (root / "kept").write_text("changed")
        (root / "deleted").unlink()
    assert (base / "kept").read_text() == "kept"
    assert (base / "deleted").exists()
    driver.create_read_write(TOP, SNAP)
    with driver.mounted(TOP) as root:
        assert (root / "kept").read_text() == "changed"
        assert not (root / "deleted").exists()


def test_a_base_that_is_no_directory_is_refused(driver: Driver) -> None:
    for bad in ("relative", "/nonexistent", "/etc/passwd"):
        with pytest.raises(OptionUnsupported, match="base"):
            driver.create_read_write(SNAP, options={"base": bad})


def test_a_damaged_archive_leaves_the_layer_as_it_was(driver: Driver, factory: Factory) -> None:
    driver.create(BASE)
    good = tar(("a", b"x" * 5000), ("b", b"y" * 5000)).getvalue()
    for cut in (100, 600, 5700, 7000):
        with pytest.raises(InvalidArchive):
            driver.apply_diff(BASE, None, _stream(good[:cut]))
    with driver.mounted(BASE) as root:
        assert list(root.iterdir()) == []
    assert driver.apply_diff(BASE, None, _stream(good)) == 10000


def _stream(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


def test_nothing_half_made_is_left(driver: Driver, factory: Factory) -> None:
    driver.create(BASE)
    before = _below(factory.home)
    with pytest.raises(InvalidArchive):
        driver.apply_diff(BASE, None, _stream(tar(("a", b"x" * 5000)).getvalue()[:2000]))
    assert _below(factory.home) == before


def _below(home: Path) -> set[Path]:
    """All there is but the directory that a process has for itself while it lives."""
    return {path for path in home.rglob("*") if path.parent != home / "staging"}


def test_status_and_metadata_are_words(driver: Driver) -> None:
    driver.create(BASE)
    driver.create(SNAP, BASE)
    assert dict(driver.status())["Root Dir"]
    assert "Backing Filesystem" in dict(driver.status())
    assert all(isinstance(value, str) for value in driver.metadata(SNAP).values())


class _Hooked(io.BytesIO):
    """Does something when the end of the tar is reached."""

    def __init__(self, data: bytes, at_end: Callable[[], None]) -> None:
        super().__init__(data)
        self._at_end = at_end

    def readinto(self, buffer: Buffer) -> int:
        count = super().readinto(buffer)
        if count == 0:
            self._at_end()
            self._at_end = lambda: None
        return count


@pytest.mark.parametrize("again_on", [None, BASE])
def test_a_layer_removed_while_it_is_filled_is_not_found(
    factory: Factory, again_on: LayerId | None
) -> None:
    driver, other = factory.make(), factory.make()
    driver.create(BASE)
    driver.create(SNAP)

    def replace() -> None:
        other.remove(SNAP)
        if again_on is not None:
            other.create(SNAP, again_on)

    with pytest.raises(LayerNotFound, match="no such layer: snap"):
        driver.apply_diff(SNAP, None, _Hooked(tar(("a", b"a")).getvalue(), replace))
    assert driver.exists(SNAP) is (again_on is not None)
    assert driver.diff_size(SNAP, BASE) == 0 if again_on else True


def test_a_diff_against_another_layer_is_refused_as_any_other(
    driver: Driver, factory: Factory
) -> None:
    driver.create(BASE)
    driver.create(SNAP, BASE)
    with driver.mounted(SNAP), pytest.raises(LayerInUse, match="mounted"):
        driver.apply_diff(SNAP, None, tar(("a", b"a")))
    driver.create(TOP, SNAP)
    before = set(os.listdir(factory.home))
    with pytest.raises(LayerInUse, match="child"):
        driver.apply_diff(SNAP, None, tar(("a", b"a")))
    with pytest.raises(InvalidArchive):
        driver.apply_diff(TOP, None, _stream(tar(("a", b"x" * 5000)).getvalue()[:2000]))
    with driver.mounted(TOP) as root:
        assert os.listdir(root) == []
    deep = "/".join(["d"] * 1500)
    assert driver.apply_diff(TOP, None, tar(f"{deep}/", ("a", b"a"))) == 1
    with driver.mounted(TOP) as root:
        assert sorted(os.listdir(root)) == ["a", "d"]
    assert set(os.listdir(factory.home)) == before
    driver.remove(TOP)  # which pytest's own removal is not up to


def test_only_regular_files_are_got(driver: Driver) -> None:
    if os.geteuid() != 0:
        pytest.skip("devices take root")
    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root:
        (root / "dir").mkdir()
        (root / "dir/file").write_text("file")
        (root / "link").symlink_to("dir/file")
        os.mkfifo(root / "fifo")
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    getter = driver.diff_getter(BASE)
    try:
        with getter.open(b"dir/file") as file:
            assert file.read() == b"file"
        for name in (b"dir", b"link", b"fifo", b"null", b"none", b"dir/file/x"):
            with pytest.raises((FileNotFoundError, NotADirectoryError)):
                getter.open(name)
    finally:
        getter.close()
