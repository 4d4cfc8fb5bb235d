"""Changes, as docker diff says them, of layers and of trees."""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.archive.changes import Change, changes_between, changes_from_uppers
from lamina.archive.whiteout import AUFS, OVERLAY, OVERLAY_USER, Format
from lamina.kernel.remove import remove_tree
from tests.archive.layers import chain, difference, disturb, in_memory, link, make, overlay

pytestmark = pytest.mark.root
ALL = pytest.mark.parametrize("fmt", [AUFS, OVERLAY, OVERLAY_USER], ids=lambda f: f.name)


def lines(changes: list[Change]) -> list[str]:
    return [str(change) for change in changes]


@pytest.mark.parametrize("seed", range(25))
def test_random_work_in_real_overlays_is_told_right(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    layers = [tmp_path / "0"]
    layers[0].mkdir()
    # Without links: overlayfs breaks them when it copies one name up, unseen by the upper layer.
    disturb(layers[0], rng, 40, link)
    for number in range(1, 5):
        upper = tmp_path / str(number)
        with overlay(tmp_path / "merged", layers, upper) as merged:
            disturb(merged, rng, 15, *((link,) if number < 4 else ()))
        layers.insert(0, upper)
    with overlay(tmp_path / "new", layers) as new:
        for below in range(1, 5):
            uppers, lowers = layers[:below], layers[below:]
            with overlay(tmp_path / "old", lowers) as old:
                expected = difference(new, old)
                assert lines(changes_from_uppers(uppers, lowers, OVERLAY)) == expected
                assert lines(changes_between(new, old)) == expected


def layer(path: Path, fmt: Format, *entries: str) -> Path:
    """A layer whose files and directories all have the same time."""
    top = make(path, fmt, *entries)
    for below in [top, *top.rglob("*")]:
        os.utime(below, ns=(0, 10**18), follow_symlinks=False)
    return top


@ALL
@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ([], []),
        (["new"], ["A /new"]),
        (["d/new"], ["C /d", "A /d/new"]),
        (["n/m/f"], ["A /n", "A /n/m", "A /n/m/f"]),
        (["d/f"], []),
        (["d/"], []),
        (["-d"], ["D /d"]),
        (["-nothing", "-d/nothing"], []),
        (["-d/e/x"], ["C /d", "C /d/e", "D /d/e/x"]),
        (["d/!"], ["C /d", "D /d/e", "D /d/f"]),
        (["d/!", "d/f", "d/e/new"], ["C /d", "C /d/e", "A /d/e/new", "D /d/e/x"]),
        (["n/!", "n/f"], ["A /n", "A /n/f"]),
        (["!", "new"], ["A /new"]),
        (["d"], ["C /d"]),
        (["f/x"], ["C /f", "A /f/x"]),
    ],
    ids=str,
)
def test_each_kind(fmt: Format, tmp_path: Path, upper: list[str], expected: list[str]) -> None:
    lower = layer(tmp_path / "lower", fmt, "d/f", "d/e/x", "f")
    top = layer(tmp_path / "upper", fmt, *upper)
    assert lines(changes_from_uppers([top], [lower], fmt)) == expected


@ALL
def test_what_a_lower_layer_hides_is_not_there(fmt: Format, tmp_path: Path) -> None:
    lowers = [
        layer(tmp_path / "2", fmt, "-f", "d/!", "d/seen", "g"),
        layer(tmp_path / "1", fmt, "f", "d/f", "g/x", "h/x"),
    ]
    upper = layer(tmp_path / "3", fmt, "-f", "d/f", "-d/g", "-g", "h/x")
    expected = ["C /d", "A /d/f", "D /g"]
    assert lines(changes_from_uppers([upper], lowers, fmt)) == expected


def test_a_directory_is_looked_up_as_one_never_through_a_link(tmp_path: Path) -> None:
    lower = layer(tmp_path / "1", OVERLAY, "real/f")
    (lower / "d").symlink_to("real")
    upper = layer(tmp_path / "2", OVERLAY, "d/f")
    assert lines(changes_from_uppers([upper], [lower], OVERLAY)) == ["C /d", "A /d/f"]


def another_size(path: Path) -> None:
    os.truncate(path, 2)
    os.utime(path, ns=(0, 10**18))


def another_type(path: Path) -> None:
    path.unlink()
    path.symlink_to("x")
    os.utime(path, ns=(0, 10**18), follow_symlinks=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.chmod(0o4755),
        lambda p: os.chown(p, 7, 0),
        lambda p: os.chown(p, 0, 7),
        another_size,
        lambda p: os.utime(p, ns=(0, 10**18 + 10**9)),
        lambda p: os.setxattr(p, "user.a", b"1"),
        another_type,
    ],
    ids=["mode", "user", "group", "size", "time", "attribute", "type"],
)
def test_what_makes_a_file_differ(tmp_path: Path, change: Callable[[Path], object]) -> None:
    old = layer(tmp_path / "old", OVERLAY, "d/f")
    new = layer(tmp_path / "new", OVERLAY, "d/f")
    assert changes_between(new, old) == []
    change(new / "d" / "f")
    assert lines(changes_between(new, old)) == ["C /d", "C /d/f"]
    assert lines(changes_from_uppers([new], [old], OVERLAY)) == ["C /d", "C /d/f"]


@pytest.mark.parametrize(
    ("make_node", "expected"),
    [
        (lambda p, n: p.symlink_to("x" if n else "y"), ["C /n"]),
        (lambda p, n: os.mknod(p, 0o20600, os.makedev(1, 3 + n)), ["C /n"]),
        (lambda p, n: os.mknod(p, 0o20600 if n else 0o60600, os.makedev(7, 1)), ["C /n"]),
        (lambda p, n: os.mkfifo(p), []),
    ],
    ids=["link target", "device number", "device type", "fifo"],
)
def test_special_files(
    tmp_path: Path, make_node: Callable[[Path, int], object], expected: list[str]
) -> None:
    trees = []
    for number in range(2):
        tree = tmp_path / str(number)
        tree.mkdir()
        make_node(tree / "n", number)
        os.utime(tree / "n", ns=(0, 0), follow_symlinks=False)
        trees.append(tree)
    assert lines(changes_between(*trees)) == expected


def test_times_count_at_the_precision_that_both_have(tmp_path: Path) -> None:
    new = layer(tmp_path / "new", OVERLAY, "a", "b", "c")
    old = layer(tmp_path / "old", OVERLAY, "a", "b", "c")
    os.utime(new / "a", ns=(0, 10**18 + 5))  # the other has whole seconds
    for tree, nanoseconds in ((new, 5), (old, 6)):
        os.utime(tree / "b", ns=(0, 10**18 + nanoseconds))
    os.utime(new / "c", ns=(0, 10**18 - 1))
    assert lines(changes_between(new, old)) == ["C /b", "C /c"]


def test_of_a_directory_time_does_not_count(tmp_path: Path) -> None:
    new = layer(tmp_path / "new", OVERLAY, "d/f")
    old = layer(tmp_path / "old", OVERLAY, "d/f")
    os.utime(new / "d", ns=(0, 5))
    assert changes_between(new, old) == []
    (new / "d").chmod(0o700)
    assert lines(changes_between(new, old)) == ["C /d"]


def test_a_link_more_or_less_is_a_change(tmp_path: Path) -> None:
    trees = [layer(tmp_path / str(number), OVERLAY, "a") for number in range(2)]
    new, old = trees
    for tree in trees:
        shutil.copy2(tree / "a", tree / "b")
    assert changes_between(new, old) == []
    (new / "b").unlink()
    os.link(new / "a", new / "b")
    assert lines(changes_between(new, old)) == ["C /b"]
    assert lines(changes_between(old, new)) == ["C /b"]
    (old / "b").unlink()
    os.link(old / "a", old / "b")
    assert changes_between(new, old) == []


def test_the_same_inode_is_the_same_file(tmp_path: Path) -> None:
    new = layer(tmp_path / "new", OVERLAY, "a")
    old = tmp_path / "old"
    old.mkdir()
    os.link(new / "a", old / "b")
    os.link(new / "a", old / "a")
    assert lines(changes_between(new, old)) == ["D /b"]


def test_without_an_old_tree_all_was_added(tmp_path: Path) -> None:
    new = layer(tmp_path / "new", OVERLAY, "a", "d/e")
    assert lines(changes_between(new, None)) == ["A /a", "A /d", "A /d/e"]


def test_sorted_by_bytes_of_the_path(tmp_path: Path) -> None:
    new = layer(tmp_path / "new", OVERLAY, "a/b", "a.b", "a-b", "ä")
    (Path(os.fsdecode(os.fsencode(new) + b"/\xff"))).touch()
    paths = [change.path for change in changes_between(new, None)]
    assert paths == sorted(paths)
    assert paths[:4] == [b"/a", b"/a-b", b"/a.b", b"/a/b"]
    assert paths[-1] == b"/\xff"


def test_overlayfs_marks_are_no_attributes_of_a_file(tmp_path: Path) -> None:
    upper = layer(tmp_path / "2", OVERLAY, "d/f")
    lower = layer(tmp_path / "1", OVERLAY, "d/f")
    os.setxattr(upper / "d/f", "trusted.overlay.origin", b"x")
    os.setxattr(upper / "d", "trusted.overlay.impure", b"y")
    assert changes_from_uppers([upper], [lower], OVERLAY) == []


def test_time_is_that_of_the_upper_not_of_the_lowers(tmp_path: Path) -> None:
    lowers = [layer(tmp_path / str(n), OVERLAY, f"d/{n}", f"e{n}/f") for n in range(500)]
    upper = layer(tmp_path / "upper", OVERLAY, "e7/f", "e499/g", "-d/0")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (700, hard))
    try:
        found = changes_from_uppers([upper], lowers, OVERLAY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert lines(found) == ["C /d", "D /d/0", "C /e499", "A /e499/g"]


def test_ten_thousand_levels(tmp_path: Path) -> None:
    with in_memory(tmp_path / "memory") as memory:
        upper, lower = memory / "upper", memory / "lower"
        for tree in (upper, lower):
            tree.mkdir()
            chain(tree, 10_000)
        assert changes_from_uppers([upper], [lower], OVERLAY) == []
        assert len(changes_from_uppers([upper], [], OVERLAY)) == 10_000
        for tree in (upper, lower):
            remove_tree(tree)
