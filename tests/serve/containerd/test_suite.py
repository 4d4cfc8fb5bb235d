"""What containerd's clients rely on, of each driver, in process and through the socket."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.errors import (
    InvalidSnapshotRequest,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotRefused,
)
from lamina.kernel.mountinfo import mounts_below
from lamina.store.snapshots import Kind, Snapshots
from tests.mounting import mounted
from tests.serve.containerd.client import Snapshotter


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """Where mounts of a test are made, one at a time or below each other."""
    path = tmp_path / "mounts"
    path.mkdir()
    return path


@contextmanager
def prepared(snapshotter: Snapshotter, at: Path, key: str, parent: str = "") -> Iterator[Path]:
    with mounted(snapshotter.prepare(key, parent), at / key.replace("/", "-")) as root:
        yield root


def layer(snapshotter: Snapshotter, at: Path, name: str, parent: str = "", **files: str) -> None:
    """Commit a snapshot with some files; one without content is deleted."""
    with prepared(snapshotter, at, f"{name}-making", parent) as root:
        for file, content in files.items():
            if content:
                (root / file).write_text(content)
            else:
                (root / file).unlink()
    snapshotter.commit(name, f"{name}-making")


def tree(root: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in root.iterdir() if p.is_file()}


def seen(snapshotter: Snapshotter, at: Path, name: str) -> dict[str, str]:
    """The files of a committed snapshot, by a view that does not stay."""
    with mounted(snapshotter.view("looking", name), at / "looking") as root:
        found = tree(root)
    snapshotter.remove("looking")
    return found


def names(snapshotter: Snapshotter, *filters: str) -> set[str]:
    return {info.name for info in snapshotter.list(filters)}


# -- life


def test_a_layer_is_imported_and_another_on_it(snapshotter: Snapshotter, at: Path) -> None:
    layer(snapshotter, at, "base", a="base", b="base", c="base")
    layer(snapshotter, at, "app", "base", b="app", c="", d="app")
    assert seen(snapshotter, at, "base") == {"a": "base", "b": "base", "c": "base"}
    assert seen(snapshotter, at, "app") == {"a": "base", "b": "app", "d": "app"}


def test_what_a_container_writes_is_its_own(snapshotter: Snapshotter, at: Path) -> None:
    layer(snapshotter, at, "base", a="base")
    with (
        prepared(snapshotter, at, "one", "base") as one,
        prepared(snapshotter, at, "two", "base") as two,
    ):
        (one / "a").write_text("one")
        (two / "new").write_text("two")
        assert tree(one) == {"a": "one"}
        assert tree(two) == {"a": "base", "new": "two"}
    assert seen(snapshotter, at, "base") == {"a": "base"}


def test_a_committed_snapshot_has_the_name_alone(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("key")
    snapshotter.commit("name", "key")
    assert names(snapshotter) == {"name"}
    with pytest.raises(SnapshotNotFound):
        snapshotter.stat("key")
    snapshotter.prepare("key", "name")


def test_a_key_can_be_used_again_after_removal(snapshotter: Snapshotter, at: Path) -> None:
    for content in ("first", "second"):
        with prepared(snapshotter, at, "key") as root:
            assert tree(root) == {}
            (root / "file").write_text(content)
        snapshotter.remove("key")
    assert names(snapshotter) == set()


def test_mounts_are_told_again(snapshotter: Snapshotter) -> None:
    first = snapshotter.prepare("base-making")
    assert snapshotter.mounts("base-making") == first
    snapshotter.commit("base", "base-making")
    view = snapshotter.view("view", "base")
    assert snapshotter.mounts("view") == view
    active = snapshotter.prepare("box", "base")
    assert snapshotter.mounts("box") == active


def test_a_removed_snapshot_leaves_no_layer(snapshotter: Snapshotter, store: Snapshots) -> None:
    snapshotter.prepare("a")
    snapshotter.commit("b", "a")
    snapshotter.prepare("c", "b")
    snapshotter.view("d", "b")
    for key in ("c", "d", "b"):
        snapshotter.remove(key)
    snapshotter.cleanup()
    assert list(store.driver.ids()) == []


def test_a_commit_while_it_is_mounted(snapshotter: Snapshotter, at: Path) -> None:
    layer(snapshotter, at, "base", a="base")
    with prepared(snapshotter, at, "key", "base") as root:
        (root / "new").write_text("new")
        os.sync()
        snapshotter.commit("name", "key")
        assert tree(root) == {"a": "base", "new": "new"}
    assert seen(snapshotter, at, "name") == {"a": "base", "new": "new"}


def test_others_stand_on_what_is_committed_and_still_mounted(
    snapshotter: Snapshotter, store: Snapshots, at: Path
) -> None:
    layer(snapshotter, at, "base", a="base", b="base", c="base")
    with prepared(snapshotter, at, "key", "base") as root:
        (root / "a").write_text("app")
        (root / "b").unlink()
        snapshotter.commit("app", "key")
        expected = {"a": "app", "c": "base"}
        assert seen(snapshotter, at, "app") == expected
        with prepared(snapshotter, at, "box", "app") as box:
            assert tree(box) == expected
            (box / "c").unlink()
            assert tree(box) == {"a": "app"}
            snapshotter.commit("top", "box")
            assert seen(snapshotter, at, "top") == {"a": "app"}
        assert seen(snapshotter, at, "top") == {"a": "app"}
        snapshotter.remove("top")
    snapshotter.cleanup()
    assert not mounts_below(store.root / store.driver.name / "mnt")
    assert seen(snapshotter, at, "app") == expected == tree_of_a_box(snapshotter, at)
    snapshotter.remove("app")
    snapshotter.cleanup()
    assert len(list(store.driver.ids())) == 1
    assert not mounts_below(store.root / store.driver.name / "mnt")


def tree_of_a_box(snapshotter: Snapshotter, at: Path) -> dict[str, str]:
    with prepared(snapshotter, at, "another", "app") as root:
        found = tree(root)
    snapshotter.remove("another")
    return found


def test_removal_while_it_is_mounted(snapshotter: Snapshotter, at: Path) -> None:
    layer(snapshotter, at, "base", a="base")
    with prepared(snapshotter, at, "key", "base"):
        snapshotter.remove("key")
        with pytest.raises(SnapshotNotFound):
            snapshotter.stat("key")


def test_128_layers(snapshotter: Snapshotter, at: Path) -> None:
    parent = ""
    for number in range(128):
        with prepared(snapshotter, at, f"making {number}", parent) as root:
            (root / "changed").write_text(str(number))
            if number % 16 == 0:
                (root / f"file-{number}").write_text("x")
        snapshotter.commit(f"layer {number}", f"making {number}")
        parent = f"layer {number}"
    with prepared(snapshotter, at, "box", parent) as root:
        assert (root / "changed").read_text() == "127"
        assert len(tree(root)) == 1 + 8
        (root / "changed").write_text("box")
    assert seen(snapshotter, at, parent)["changed"] == "127"


# -- views


@pytest.mark.parametrize("parent", ["", "base", "app"])
def test_a_view_refuses_writes(snapshotter: Snapshotter, at: Path, parent: str) -> None:
    layer(snapshotter, at, "base", a="base")
    layer(snapshotter, at, "app", "base", a="app")
    with mounted(snapshotter.view("view", parent), at / "view") as root:
        assert tree(root) == ({"a": parent} if parent else {})
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").write_text("new")
    assert snapshotter.stat("view").kind is Kind.VIEW


def test_views_make_no_layers(snapshotter: Snapshotter, store: Snapshots, at: Path) -> None:
    layer(snapshotter, at, "base", a="base")
    for number in range(3):
        snapshotter.view(f"view {number}", "base")
    assert len(list(store.driver.ids())) == 1
    snapshotter.remove("view 0")
    with mounted(snapshotter.mounts("view 1"), at / "view") as root:
        assert tree(root) == {"a": "base"}


def test_a_view_is_no_parent_and_not_committed(snapshotter: Snapshotter) -> None:
    snapshotter.view("view")
    with pytest.raises(InvalidSnapshotRequest):
        snapshotter.prepare("key", "view")
    with pytest.raises(SnapshotRefused):
        snapshotter.commit("name", "view")


# -- what is refused


def test_a_key_that_is_taken(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("key")
    snapshotter.prepare("other")
    snapshotter.commit("name", "other")
    for taken in ("key", "name"):
        with pytest.raises(SnapshotExists):
            snapshotter.prepare(taken)
        with pytest.raises(SnapshotExists):
            snapshotter.view(taken, "name")
        with pytest.raises(SnapshotExists):
            snapshotter.commit(taken, "key")
    assert names(snapshotter) == {"key", "name"}


def test_a_parent_that_is_active(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("active")
    for make in (snapshotter.prepare, snapshotter.view):
        with pytest.raises(InvalidSnapshotRequest, match="not committed"):
            make("key", "active")
    assert names(snapshotter) == {"active"}


def test_a_parent_that_is_not_there(snapshotter: Snapshotter) -> None:
    for make in (snapshotter.prepare, snapshotter.view):
        with pytest.raises(SnapshotNotFound):
            make("key", "nowhere")
    assert names(snapshotter) == set()


def test_removal_of_what_others_stand_on(snapshotter: Snapshotter, at: Path) -> None:
    layer(snapshotter, at, "base", a="base")
    for key, make in (("box", snapshotter.prepare), ("view", snapshotter.view)):
        make(key, "base")
        with pytest.raises(SnapshotRefused, match="others stand on it"):
            snapshotter.remove("base")
        snapshotter.remove(key)
    snapshotter.remove("base")


def test_what_is_not_there(snapshotter: Snapshotter) -> None:
    for call in (
        snapshotter.stat,
        snapshotter.mounts,
        snapshotter.usage,
        snapshotter.remove,
        lambda key: snapshotter.commit("name", key),
        lambda key: snapshotter.update(key, {}),
    ):
        with pytest.raises(SnapshotNotFound):
            call("nowhere")


def test_a_committed_snapshot_is_neither_mounted_nor_committed(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("key")
    snapshotter.commit("name", "key")
    with pytest.raises(SnapshotRefused):
        snapshotter.mounts("name")
    with pytest.raises(SnapshotRefused):
        snapshotter.commit("again", "name")


def test_an_empty_key(snapshotter: Snapshotter) -> None:
    for make in (snapshotter.prepare, snapshotter.view):
        with pytest.raises(InvalidSnapshotRequest):
            make("")


# -- what is told


def test_what_stat_tells(snapshotter: Snapshotter) -> None:
    labels = {"containerd.io/snapshot.ref": "sha256:1", "empty": ""}
    snapshotter.prepare("making")
    snapshotter.commit("base", "making", {"kept": "no"})
    snapshotter.prepare("key", "base", labels)
    found = snapshotter.stat("key")
    assert (found.name, found.parent, found.kind) == ("key", "base", Kind.ACTIVE)
    assert found.labels == labels
    assert found.created == found.updated > 0


def test_a_commit_replaces_labels_and_times(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("key", "", {"old": "1"})
    before = snapshotter.stat("key")
    snapshotter.commit("name", "key", {"new": "2"})
    after = snapshotter.stat("name")
    assert after.kind is Kind.COMMITTED
    assert after.labels == {"new": "2"}
    assert after.created == after.updated > before.created


def test_usage_of_what_is_active_grows_and_is_recorded(snapshotter: Snapshotter, at: Path) -> None:
    layer(snapshotter, at, "base", big="x" * 500_000)
    with prepared(snapshotter, at, "key", "base") as root:
        before = snapshotter.usage("key")
        (root / "more").write_bytes(os.urandom(200_000))
        os.sync()
        after = snapshotter.usage("key")
        assert 200_000 <= after.size - before.size < 300_000
        assert after.inodes == before.inodes + 1
    snapshotter.commit("name", "key")
    assert snapshotter.usage("name").size >= 200_000
    assert snapshotter.usage("base").size >= 500_000
    snapshotter.view("view", "name")
    assert snapshotter.usage("view") == (0, 0)


def test_the_top_directory_keeps_what_it_was_given(
    snapshotter: Snapshotter, driver_name: str, at: Path
) -> None:
    if driver_name == "aufs":
        pytest.skip("Docker's driver, whose layout this is, gives each layer a top of its own")
    with prepared(snapshotter, at, "key") as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o755
        root.chmod(0o711)
        os.chown(root, 12, 34)
    snapshotter.commit("base", "key")
    with prepared(snapshotter, at, "box", "base") as root:
        found = root.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o711, 12, 34)


# -- updates


def test_an_update_without_mask_replaces_all_labels(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("key", "", {"a": "1", "b": "2"})
    before = snapshotter.stat("key")
    told = snapshotter.update("key", {"c": "3"})
    assert told == snapshotter.stat("key")
    assert told.labels == {"c": "3"}
    assert told.updated > told.created == before.created
    assert (told.kind, told.parent) == (Kind.ACTIVE, "")


def test_an_update_of_named_labels(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("making")
    snapshotter.commit("key", "making", {"a": "1", "b": "2", "c.d/e": "3"})
    told = snapshotter.update(
        "key", {"a": "new", "c.d/e": "4", "ignored": "x"}, ["labels.a", "labels.b", "labels.c.d/e"]
    )
    assert told.labels == {"a": "new", "c.d/e": "4"}
    assert snapshotter.update("key", {"z": "26"}, ["labels"]).labels == {"z": "26"}
    assert snapshotter.update("key", {}, ["labels.z"]).labels == {}


@pytest.mark.parametrize("field", ["name", "parent", "kind", "created_at", "label", "", "labelsx"])
def test_an_update_of_anything_else(snapshotter: Snapshotter, field: str) -> None:
    snapshotter.prepare("key", "", {"a": "1"})
    before = snapshotter.stat("key")
    with pytest.raises(InvalidSnapshotRequest):
        snapshotter.update("key", {"a": "2"}, ["labels", field])
    assert snapshotter.stat("key") == before


def test_labels_have_a_limit(snapshotter: Snapshotter) -> None:
    longest = {"k" * 96: "v" * 4000, "other": "x"}
    snapshotter.prepare("key", "", longest)
    assert snapshotter.stat("key").labels == longest
    too_long = {"k" * 97: "v" * 4000}
    for call in (
        lambda: snapshotter.prepare("new", "", too_long),
        lambda: snapshotter.update("key", too_long),
        lambda: snapshotter.commit("name", "key", too_long),
    ):
        with pytest.raises(InvalidSnapshotRequest, match="4096"):
            call()
    assert names(snapshotter) == {"key"}


def test_all_labels_together_have_a_limit(snapshotter: Snapshotter) -> None:
    """Also of a snapshot that gets them bit by bit: it could not be told to a client any more."""
    snapshotter.prepare("key")
    before: dict[str, str] = {}
    with pytest.raises(InvalidSnapshotRequest, match="labels of"):
        for number in range(10):
            more = {f"{number}-{i}": "x" * 4000 for i in range(50)}
            snapshotter.update("key", more, [f"labels.{key}" for key in more])
            before |= more
    assert snapshotter.stat("key").labels == before


# -- lists


def test_a_list_of_snapshots_with_many_labels(snapshotter: Snapshotter) -> None:
    labels = {str(number): "x" * 4000 for number in range(100)}
    for number in range(30):
        snapshotter.prepare(str(number), "", labels)
    assert {info.name: info.labels for info in snapshotter.list()} == {
        str(number): labels for number in range(30)
    }


def test_lists_by_filters(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("making", "", {})
    snapshotter.commit("base", "making", {"containerd.io/snapshot.ref": "sha256:1"})
    snapshotter.prepare("box", "base", {"team": "blue"})
    snapshotter.view("look", "base", {"team": "red"})
    everything = {"base", "box", "look"}
    assert names(snapshotter) == everything == names(snapshotter, "")
    assert names(snapshotter, "name==box") == {"box"}
    assert names(snapshotter, "kind==committed") == {"base"}
    assert names(snapshotter, "parent==base,kind!=view") == {"box"}
    assert names(snapshotter, "parent") == {"box", "look"}
    assert names(snapshotter, "kind==view", "name==base") == {"look", "base"}
    assert names(snapshotter, 'labels."containerd.io/snapshot.ref"=="sha256:1"') == {"base"}
    assert names(snapshotter, "labels.team") == {"box", "look"}
    assert names(snapshotter, "labels.team~=/^(blue|green)$/") == {"box"}
    assert names(snapshotter, "labels.team!=blue") == {"base", "look"}
    assert names(snapshotter, "nothing") == set()


@pytest.mark.parametrize(
    "wrong", ["name==", "==x", "name=x", "name==a,", ",", "name~=/(/", 'labels."x', "a b", "name."]
)
def test_a_filter_that_does_not_parse(snapshotter: Snapshotter, wrong: str) -> None:
    snapshotter.prepare("key")
    with pytest.raises(InvalidSnapshotRequest, match="filter"):
        list(snapshotter.list([wrong]))
    assert names(snapshotter) == {"key"}


# -- names


def test_keys_are_any_text(snapshotter: Snapshotter) -> None:
    keys = {
        "default/1/extract-123-abc sha256:" + "0" * 64, "../../../../etc/passwd", "/", "..", ".",
        "a\0b", "new\nline", "%s", "'; DROP TABLE snapshots; --", "\U0001f4a9", "x" * 5000,
        *(chr(code) for code in range(256)),
    }  # fmt: skip
    for key in keys:
        snapshotter.prepare(key)
    assert names(snapshotter) == keys
    for key in keys:
        assert snapshotter.stat(key).name == key
        snapshotter.remove(key)
    assert names(snapshotter) == set()


# -- rebase


def test_a_commit_onto_another_parent(snapshotter: Snapshotter, store: Snapshots, at: Path) -> None:
    layer(snapshotter, at, "base", a="base", b="base")
    with prepared(snapshotter, at, "key") as root:
        (root / "a").write_text("app")
        (root / "c").write_text("app")
    snapshotter.commit("app", "key", {"l": "1"}, parent="base")
    assert snapshotter.stat("app").parent == "base"
    assert seen(snapshotter, at, "app") == {"a": "app", "b": "base", "c": "app"}
    snapshotter.cleanup()
    assert len(list(store.driver.ids())) == 2
    with pytest.raises(SnapshotRefused):
        snapshotter.remove("base")


def test_a_commit_onto_the_parent_it_has(snapshotter: Snapshotter, at: Path) -> None:
    layer(snapshotter, at, "base", a="base")
    snapshotter.prepare("key", "base")
    snapshotter.commit("app", "key", parent="base")
    assert snapshotter.stat("app").parent == "base"


def test_a_commit_onto_a_parent_that_can_not_be(snapshotter: Snapshotter, at: Path) -> None:
    layer(snapshotter, at, "base", a="base")
    layer(snapshotter, at, "other", a="other")
    snapshotter.prepare("on base", "base")
    snapshotter.prepare("alone")
    with pytest.raises(SnapshotRefused, match="another parent"):
        snapshotter.commit("name", "on base", parent="other")
    with pytest.raises(SnapshotNotFound):
        snapshotter.commit("name", "alone", parent="nowhere")
    with pytest.raises(InvalidSnapshotRequest):
        snapshotter.commit("name", "alone", parent="on base")
    assert snapshotter.stat("alone").kind is Kind.ACTIVE


def test_cleanup_leaves_what_is_used(snapshotter: Snapshotter, at: Path) -> None:
    layer(snapshotter, at, "base", a="base")
    snapshotter.prepare("box", "base")
    snapshotter.view("view", "base")
    snapshotter.cleanup()
    assert names(snapshotter) == {"base", "box", "view"}
    assert seen(snapshotter, at, "base") == {"a": "base"}
