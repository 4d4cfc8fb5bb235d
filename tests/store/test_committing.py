from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from lamina.errors import InvalidName, LaminaError
from lamina.oci import RunConfig, chain_ids
from lamina.store import Image, Store


@pytest.fixture
def image(store: Store, root_fs: bytes) -> Image:
    return store.import_tar(io.BytesIO(root_fs), "image", config=RunConfig(cmd=["sh"]))


def _tree(store: Store, image: Image) -> dict[str, bytes | None]:
    with store.container(image) as box:
        return {
            str(path.relative_to(box.root)): path.read_bytes() if path.is_file() else None
            for path in box.root.rglob("*")
        }


def _stack(store: Store, image: Image, count: int) -> Image:
    """``count`` layers more: each writes a file, changes one, and removes the one before."""
    for number in range(count):
        with store.container(image) as box:
            (box.root / f"f{number}").write_text(str(number))
            (box.root / "etc/motd").write_text(str(number))
            if number:
                (box.root / f"f{number - 1}").unlink()
            image = box.commit(f"stack:{number}")
    return image


def test_a_commit_is_one_layer_on_the_image(store: Store, image: Image) -> None:
    with store.container(image, command=["sh", "-c", "x"]) as box:
        (box.root / "etc/motd").write_text("hello")
        (box.root / "etc/hostname").unlink()
        new = box.commit("image:hello", message="greets", author="me")
    assert new.layers[:-1] == image.layers
    assert new.diff_ids == [layer.diff_id for layer in new.layers]
    assert new.layers[-1].size == 5
    assert new.config.config is not None
    assert new.config.config.cmd == ["sh"]
    assert new.config.author == "me"
    history = new.config.history or []
    assert (history[-1].created_by, history[-1].comment) == ("sh -c x", "greets")
    tree = _tree(store, new)
    assert tree["etc/motd"] == b"hello"
    assert "etc/hostname" not in tree
    assert store.check(contents=True) == []


def test_snapshots_are_one_layer_in_the_commit(store: Store, image: Image) -> None:
    with store.container(image) as box:
        for number in range(3):
            (box.root / "count").write_text(str(number))
            (box.root / f"f{number}").write_text("")
            box.snapshot(f"s{number}")
        (box.root / "f0").unlink()
        new = box.commit()
    assert len(new.layers) == 2
    tree = _tree(store, new)
    assert tree["count"] == b"2"
    assert "f0" not in tree
    assert "f1" in tree


def test_the_same_changes_make_the_same_layer(
    store: Store, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made = []
    for _ in range(2):
        with store.container(image) as box:
            (box.root / "new").write_text("x")
            for path in (box.root / "new", box.root):
                os.utime(path, (0, 0))
            made.append(box.commit())
    assert made[0] == made[1]
    assert len(list(store.driver.ids())) == 2


@pytest.mark.parametrize("squash", [False, True])
def test_the_same_content_at_another_time_is_the_same_image(
    store: Store, image: Image, monkeypatch: pytest.MonkeyPatch, squash: bool
) -> None:
    """Times after SOURCE_DATE_EPOCH, as of all that was written since, are that time."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made, times = [], []
    for _ in range(2):
        with store.container(image) as box:
            (box.root / "new/dir").mkdir(parents=True)
            (box.root / "new/dir/file").write_text("x")
            (box.root / "new/link").symlink_to("dir")
            (box.root / "etc/hostname").unlink()
            (box.root / "old").write_text("x")
            os.utime(box.root / "old", (5, 5))
            times.append((box.root / "new/dir/file").stat().st_mtime_ns)
            made.append(box.commit(squash=squash))
    assert made[0].id == made[1].id
    assert times[0] < times[1], "else nothing was to be clamped"
    with store.container(made[0]) as box:
        seconds = {path.name: path.lstat().st_mtime for path in box.root.rglob("*")}
    assert max(seconds.values()) == seconds["file"] == seconds["link"] == 1_700_000_000
    assert seconds["old"] == 5


def test_a_directory_is_imported_as_of_source_date_epoch(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made = []
    for number in range(2):
        source = tmp_path / f"source{number}"
        (source / "dir").mkdir(parents=True)
        (source / "dir/file").write_text("x")
        made.append(store.import_directory(source).diff_ids)
    assert made[0] == made[1]


@pytest.mark.parametrize("bad", ["soon", "-1", "1.5", "99999999999999", "\u0661", " 1"])
def test_a_source_date_epoch_that_is_none_is_said_before_anything_is_made(
    store: Store, image: Image, root_fs: bytes, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", bad)
    before = set(store.driver.ids())
    with (
        store.container(image) as box,
        pytest.raises(LaminaError, match="SOURCE_DATE_EPOCH is no number of seconds since 1970"),
    ):
        before = set(store.driver.ids())
        box.commit("new")
    with pytest.raises(LaminaError, match="SOURCE_DATE_EPOCH"):
        store.import_tar(io.BytesIO(root_fs + bytes(512)), "new")
    assert set(store.driver.ids()) < before
    assert [str(name) for image in store.images for name in image.names] == ["image:latest"]


def test_a_squashed_commit_has_everything_in_one_layer(store: Store, image: Image) -> None:
    with store.container(image) as box:
        (box.root / "etc/motd").unlink()
        (box.root / "new").write_text("x")
        new = box.commit("flat", squash=True)
        before = {path.name for path in box.root.rglob("*")}
    assert len(new.layers) == len(new.diff_ids) == 1
    assert {path.rpartition("/")[2] for path in _tree(store, new)} == before
    history = new.config.history or []
    assert [step.empty_layer for step in history] == [True, None]


@pytest.mark.root
def test_over_a_directory_only_the_changes_are_committed(store: Store, image: Image) -> None:
    base = store.root.parent / "base"
    (base / "etc").mkdir(parents=True)
    (base / "etc/old").write_text("old")
    with store.container(base) as box:
        (box.root / "etc/new").write_text("new")
        changes, whole = box.commit("changes"), box.commit("whole", squash=True)
    assert "etc/old" not in _tree(store, changes)
    assert _tree(store, changes)["etc/new"] == b"new"
    assert set(_tree(store, whole)) == {"etc", "etc/old", "etc/new"}


@pytest.mark.parametrize(("first", "last"), [(0, 4), (0, 0), (1, 3), (2, 4), (0, 2)])
def test_squashing_a_range_keeps_the_tree(
    store: Store, image: Image, first: int, last: int
) -> None:
    stack = _stack(store, image, 4)
    squashed = store.squash(stack, first, last, "squashed")
    assert len(squashed.layers) == 5 - (last - first)
    assert squashed.layers[:first] == stack.layers[:first]
    assert squashed.diff_ids[first + 1 :] == stack.diff_ids[last + 1 :]
    assert [layer.chain_id for layer in squashed.layers] == chain_ids(squashed.diff_ids)
    assert _tree(store, squashed) == _tree(store, stack)
    steps = [step for step in squashed.config.history or [] if not step.empty_layer]
    assert len(steps) == len(squashed.layers)
    assert store.check(contents=True) == []


def test_squashing_sees_changes_whose_times_were_clamped(
    store: Store, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files of one size have one time then: where trees are compared they have to be read."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    stack = _stack(store, image, 4)
    assert _tree(store, store.squash(stack, 2, 4)) == _tree(store, stack)


def test_squashing_counts_from_the_top_too(store: Store, image: Image) -> None:
    stack = _stack(store, image, 3)
    assert len(store.squash(stack).layers) == 1
    assert len(store.squash(stack, -2).layers) == 3
    for first, last in ((2, 1), (0, 4), (-5, 0)):
        with pytest.raises(InvalidName, match="no layers"):
            store.squash(stack, first, last)


def test_where_a_directory_lies_is_no_part_of_its_image(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    images = []
    for place in ("one", "two"):
        (tmp_path / place / "root").mkdir(parents=True)
        (tmp_path / place / "root/file").write_text("x")
        images.append(store.import_directory(tmp_path / place / "root"))
    assert images[0] == images[1]
