from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from lamina.errors import ContainerNotFound, InvalidName, NameInUse
from lamina.store import Container, Image, Store


@pytest.fixture
def image(store: Store, root_fs: bytes) -> Image:
    return store.import_tar(io.BytesIO(root_fs), "image")


def _write(box: Container, name: str, text: str) -> None:
    with box.mounted() as root:
        (root / name).write_text(text)


def _names(box: Container) -> list[str]:
    with box.mounted() as root:
        return sorted(path.name for path in root.iterdir() if path.is_file())


def test_a_fork_goes_its_own_way(store: Store, image: Image) -> None:
    with store.container(image) as box:
        _write(box, "before", "1")
        with box.fork("twin") as twin:
            _write(box, "mine", "1")
            _write(twin, "its", "1")
            assert _names(box) == ["before", "mine"]
            assert _names(twin) == ["before", "its"]
            assert [str(change) for change in twin.changes()] == ["A /before", "A /its"]
            assert (twin.name, twin.image) == ("twin", image)
    assert [layer.kind for layer in store.layers] == ["image"]
    assert store.check() == []


def test_saving_syncs_is_asked_of_any_driver(store: Store, image: Image) -> None:
    with store.container(image, volatile=True) as box:
        _write(box, "a", "1")
        with box.fork() as twin:
            assert _names(twin) == ["a"]


def test_a_mounted_container_goes_on_after_a_fork(store: Store, image: Image) -> None:
    with store.container(image) as box:
        (box.root / "a").write_text("1")
        twin = box.fork()
        (box.root / "b").write_text("2")
        assert _names(box) == ["a", "b"]
        assert _names(twin) == ["a"]
        twin.remove()


def test_the_origin_may_go_before_the_fork(store: Store, image: Image) -> None:
    box = store.container(image, keep=True)
    _write(box, "a", "1")
    twin = box.fork("twin")
    assert twin.kept
    box.remove()
    assert _names(store.open("twin")) == ["a"]
    twin.remove()
    assert [layer.kind for layer in store.layers] == ["image"]
    assert len(list(store.driver.ids())) == 1


def test_forking_an_untouched_container_does_not_grow_its_chain(store: Store, image: Image) -> None:
    box = store.container(image, keep=True)
    _write(box, "a", "1")
    twins = [box.fork() for _ in range(5)]
    for twin in twins:
        assert _names(twin) == ["a"]
        depth = len(store.layers.chain(twin._record.layer))
        assert depth == 3, "image, what was written before, the twin's own"
    twins.append(twins[0].fork())
    assert len(store.layers.chain(twins[-1]._record.layer)) == 3
    for each in (box, *twins):
        each.remove()
    assert [layer.kind for layer in store.layers] == ["image"]


def test_a_fork_by_a_name_that_is_taken_changes_nothing(store: Store, image: Image) -> None:
    with store.container(image, name="box") as box:
        _write(box, "a", "1")
        before = sorted(store.driver.ids())
        for name, error in (("box", NameInUse), ("a/b", InvalidName)):
            with pytest.raises(error):
                box.fork(name)
        assert sorted(store.driver.ids()) == before
        assert _names(box) == ["a"]
        assert os.listdir(store.run / "containers") == [box.id]


def test_rolling_back_forgets_what_came_after(store: Store, image: Image) -> None:
    with store.container(image) as box:
        _write(box, "one", "1")
        box.snapshot("first")
        _write(box, "two", "2")
        (box.root / "etc/motd").unlink()
        box.snapshot("second")
        _write(box, "three", "3")
        assert box.snapshots == ["first", "second"]
        box.rollback("first")
        assert _names(box) == ["one"]
        assert (box.root / "etc/motd").exists()
        box.rollback("second")
        assert _names(box) == ["one", "two"]
        box.rollback("second")
        assert [str(c) for c in box.changes()] == ["C /etc", "D /etc/motd", "A /one", "A /two"]
    assert [layer.kind for layer in store.layers] == ["image"]
    assert len(list(store.driver.ids())) == 1


def test_snapshot_names(store: Store, image: Image) -> None:
    with store.container(image) as box:
        box.snapshot("empty")
        box.snapshot("still-empty")
        with pytest.raises(NameInUse):
            box.snapshot("empty")
        with pytest.raises(InvalidName):
            box.snapshot("a/b")
        with pytest.raises(InvalidName, match="it has: empty, still-empty"):
            box.rollback("never")
        _write(box, "a", "1")
        box.rollback("empty")
        assert _names(box) == []
        box.remove_snapshot("empty")
        assert box.snapshots == ["still-empty"]


def test_a_removed_snapshot_below_another_keeps_its_files(store: Store, image: Image) -> None:
    with store.container(image) as box:
        _write(box, "a", "1")
        box.snapshot("a")
        _write(box, "b", "1")
        box.snapshot("b")
        box.remove_snapshot("a")
        box.rollback("b")
        assert _names(box) == ["a", "b"]
        box.remove_snapshot("b")
        assert _names(box) == ["a", "b"]
    assert [layer.kind for layer in store.layers] == ["image"]


def test_a_container_of_no_image_layers_is_forked(store: Store, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with store.container(empty) as box, box.fork() as twin:
        _write(twin, "a", "1")
        assert _names(box) == []


def test_a_fork_that_is_not_kept_ends_with_its_block(store: Store, image: Image) -> None:
    box = store.container(image, keep=True)
    with box.fork(keep=False) as twin:
        assert not twin.kept
    with pytest.raises(ContainerNotFound):
        store.open(twin.id)
    box.remove()
