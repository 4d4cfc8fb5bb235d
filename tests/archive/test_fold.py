"""Layers folded onto a plain tree, and squashed into one. The kernel's overlay is the oracle."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamina.archive.copytree import copy_tree
from lamina.archive.fold import fold, squash
from lamina.archive.whiteout import AUFS, OVERLAY, OVERLAY_USER, Format
from lamina.kernel import path as kpath
from lamina.kernel import xattr
from tests import support
from tests.archive.tars import device, directory, fifo, file, hardlink, symlink, unpacked
from tests.archive.test_unpack import make_tree
from tests.archive.trees import describe, differences
from tests.users import User

pytestmark = pytest.mark.root
ALL = pytest.mark.parametrize("fmt", [AUFS, OVERLAY, OVERLAY_USER], ids=lambda f: f.name)
MOVE = pytest.mark.parametrize("move", [False, True], ids=["copy", "move"])


@contextmanager
def overlay(at: Path, lowers: list[Path], upper: Path | None = None) -> Iterator[Path]:
    """The kernel's own view of some layers, topmost first."""
    at.mkdir()
    options = f"index=off,lowerdir={':'.join(map(str, lowers))}"
    if upper is not None:
        upper.mkdir(exist_ok=True)
        (at.parent / f"{at.name}-work").mkdir()
        options += f",upperdir={upper},workdir={at.parent / f'{at.name}-work'}"
    support.run("mount", "-t", "overlay", "overlay", "-o", options, at)
    try:
        yield at
    finally:
        support.run("umount", at)


def merged(at: Path, lowers: list[Path]) -> dict[bytes, Any]:
    empty = at.parent / f"{at.name}-empty"
    empty.mkdir()
    with overlay(at, [*lowers, empty]) as root:
        return describe(root)


LOWER = [
    directory("keep", uid=1),
    file("keep/a", b"a"),
    file("keep/b", b"b"),
    directory("gone/deeper"),
    file("gone/deeper/f", b"f"),
    directory("opaque/sub"),
    file("opaque/sub/hidden", b"h"),
    file("opaque/hidden", b"h"),
    directory("becomes-file"),
    file("becomes-file/x", b"x"),
    file("becomes-dir", b"x"),
    symlink("becomes-dir-too", "keep"),
    file("linked", b"link"),
    hardlink("linked2", "linked"),
    file("changed", b"old", xattrs={"user.old": b"1"}),
    device("node", 1, 3),
]
UPPER = [
    directory("keep", 0o700, uid=2, xattrs={"user.new": b"2"}),
    file("keep/b", b"B"),
    file("keep/c", b"C", mode=0o4755, uid=3),
    file(".wh.gone"),
    directory("opaque"),
    file("opaque/.wh..wh..opq"),
    directory("opaque/sub"),
    file("opaque/sub/new", b"n"),
    file("becomes-file", b"now"),
    directory("becomes-dir"),
    file("becomes-dir/f", b"f"),
    directory("becomes-dir-too"),
    file("becomes-dir-too/f", b"f"),
    file("changed", b"new", xattrs={"user.new": b"2"}),
    hardlink("keep/changed", "changed"),
    hardlink("changed3", "changed"),
    fifo("node"),
    symlink("keep/a", "b"),
    file(".wh.never-there"),
    file("linked2", b"other"),
]


def plain(root: Path) -> Path:
    """A plain tree: a layer without marks."""
    unpacked(root, directory("."), *LOWER)
    return root


@ALL
@MOVE
def test_folding_gives_what_the_kernel_shows(ext4: Path, fmt: Format, move: bool) -> None:
    tree = plain(ext4 / "tree")
    unpacked(ext4 / "overlay-upper", directory("."), *UPPER, lowers=(tree,))
    unpacked(ext4 / "upper", directory("."), *UPPER, lowers=(tree,), fmt=fmt)
    expected = merged(ext4 / "merged", [ext4 / "overlay-upper", tree])
    upper = describe(ext4 / "upper")
    fold([ext4 / "upper"], fmt, tree, move=move)
    assert differences(describe(tree), expected) == []
    if not move:
        assert describe(ext4 / "upper") == upper


@MOVE
def test_two_layers_fold_as_one_after_the_other(ext4: Path, move: bool) -> None:
    plain(ext4 / "one")
    copy_tree(ext4 / "one", ext4 / "two")
    first, second = ext4 / "first", ext4 / "second"
    unpacked(first, directory("."), *UPPER)
    unpacked(
        second,
        directory("."),
        file("keep/.wh.b"),
        file("gone/again", b"x"),
        file(".wh.opaque"),
        directory("becomes-file"),
        file("becomes-file/y", b"y"),
    )
    fold([first], OVERLAY, ext4 / "one")
    fold([second], OVERLAY, ext4 / "one")
    fold([second, first], OVERLAY, ext4 / "two", move=move)
    assert differences(describe(ext4 / "one"), describe(ext4 / "two")) == []
    assert not (ext4 / "one/opaque").exists()


def test_everything_a_tree_can_have_is_folded(ext4: Path, xfs: Path) -> None:
    support.need("setfacl", "setcap")
    make_tree(ext4 / "upper")
    for place in (ext4, xfs):  # by rename, and by copies to another file system
        copy_tree(ext4 / "upper", place / "again")
        (place / "tree").mkdir()
        fold([place / "again"], OVERLAY, place / "tree", move=True)
        assert differences(describe(place / "tree"), describe(ext4 / "upper")) == []
    fold([ext4 / "upper"], OVERLAY, xfs / "tree")
    assert differences(describe(xfs / "tree"), describe(ext4 / "upper")) == []


def test_an_open_file_keeps_its_content_and_a_new_one_has_it_whole(tmp_path: Path) -> None:
    unpacked(tmp_path / "tree", file("f", b"old content"))
    unpacked(tmp_path / "upper", file("f", b"new"))
    with (tmp_path / "tree/f").open("rb") as old:
        fold([tmp_path / "upper"], OVERLAY, tmp_path / "tree")
        assert old.read() == b"old content"
    assert (tmp_path / "tree/f").read_bytes() == b"new"
    assert os.listdir(tmp_path / "tree") == ["f"]


def test_links_in_the_tree_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("mine")
    for name in ("tree", "upper"):
        (tmp_path / name).mkdir()
    (tmp_path / "tree/d").symlink_to(outside)
    (tmp_path / "tree/f").symlink_to(outside / "f")
    unpacked(tmp_path / "layer", file("d/f", b"new"), file("f", b"new"), file("d/.wh.g"))
    fold([tmp_path / "layer"], OVERLAY, tmp_path / "tree")
    assert (outside / "f").read_text() == "mine"
    assert os.listdir(outside) == ["f"]
    assert not (tmp_path / "tree/d").is_symlink()


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
@pytest.mark.parametrize("where", ["whiteout", "opaque", "inside", "below"])
@pytest.mark.parametrize("openat2", [True, False])
def test_mount_points_stop_it(
    tmp_path: Path, where: str, kind: str, openat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not openat2:  # as before Linux 5.6
        monkeypatch.setattr(kpath, "_have_openat2", lambda: False)
    tree = tmp_path / "tree"
    (tree / "d/mnt").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    source = ["-t", "tmpfs", "tmpfs"] if kind == "tmpfs" else ["--bind", str(tmp_path / "other")]
    support.run("mount", *source, tree / "d/mnt")
    try:
        (tree / "d/mnt/precious").touch()
        entry = {
            "whiteout": file(".wh.d"),
            "opaque": file("d/.wh..wh..opq"),
            "inside": file("d/mnt/f", b"x"),
            "below": file("d/.wh.mnt"),
        }[where]
        unpacked(tmp_path / "layer", entry)
        with pytest.raises(OSError, match=r"mounted") as caught:
            fold([tmp_path / "layer"], OVERLAY, tree)
        assert caught.value.errno == 16
        assert os.listdir(tree / "d/mnt") == ["precious"]
    finally:
        support.run("umount", tree / "d/mnt")


def test_a_directory_10000_deep_is_removed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for name in ["tree"] + ["d"] * 10_000:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    unpacked(tmp_path / "layer", file(".wh.d"))
    fold([tmp_path / "layer"], OVERLAY, tmp_path / "tree")
    assert os.listdir(tmp_path / "tree") == []


def test_the_formats_own_attributes_stay_behind(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for move in (False, True):
        unpacked(tmp_path / f"layer{move}", file("f", b"x"), directory("d"))
        xattr.set(tmp_path / f"layer{move}/f", "trusted.overlay.origin", b"\0")
        fold([tmp_path / f"layer{move}"], OVERLAY, tmp_path / "tree", move=move)
        assert xattr.list_all(tmp_path / "tree/f") == {}


def test_a_user_folds_into_a_directory_without_write_permission(
    ordinary_user: User,
) -> None:
    def check() -> None:
        layer, tree = Path("layer").absolute(), Path("tree").absolute()
        for top in (layer, tree):
            (top / "d").mkdir(parents=True)
            (top / "d/f").write_text(top.name)
            (top / "d").chmod(0o555)
        fold([layer], OVERLAY_USER, tree)
        assert (tree / "d/f").read_text() == "layer"
        assert stat.S_IMODE((tree / "d").stat().st_mode) == 0o555
        (tree / "d").chmod(0o755)
        (layer / "d").chmod(0o755)

    ordinary_user.call(check)


# --- squash


@ALL
@MOVE
def test_squashed_layers_do_what_they_did(ext4: Path, fmt: Format, move: bool) -> None:
    plain(ext4 / "tree")
    first, second = ext4 / "first", ext4 / "second"
    unpacked(first, directory("."), *UPPER, fmt=fmt)
    unpacked(
        second,
        directory("."),
        file("keep/.wh.b"),
        file("gone/again", b"x"),
        file(".wh.opaque"),
        file(".wh.changed"),
        directory("keep", 0o711),
        fmt=fmt,
    )
    copy_tree(ext4 / "tree", ext4 / "expected")
    fold([second, first], fmt, ext4 / "expected")
    squash([second, first], fmt, ext4 / "both", move=move)
    fold([ext4 / "both"], fmt, ext4 / "tree")
    assert differences(describe(ext4 / "tree"), describe(ext4 / "expected")) == []


def test_squashing_links_files_and_costs_no_space(tmp_path: Path) -> None:
    unpacked(tmp_path / "layer", file("f", b"x"), file(".wh.g"))
    squash([tmp_path / "layer"], OVERLAY, tmp_path / "both")
    assert (tmp_path / "both/f").stat().st_ino == (tmp_path / "layer/f").stat().st_ino
    assert stat.S_ISCHR((tmp_path / "both/g").stat().st_mode)


def test_squashing_to_another_file_system_copies(tmp_path: Path, xfs: Path) -> None:
    unpacked(tmp_path / "layer", file("f", b"x"), hardlink("g", "f"), file(".wh.h"), fifo("p"))
    for number, move in enumerate((False, True)):
        squash([tmp_path / "layer"], OVERLAY, xfs / str(number), move=move)
        shown = differences(describe(xfs / str(number)), describe(tmp_path / "layer"))
        assert [line for line in shown if not line.startswith(("b'':", "b'h':"))] == []
    shutil.rmtree(tmp_path / "layer")


def test_gnu_cp_and_a_folded_tree_agree(tmp_path: Path) -> None:
    make_tree(tmp_path / "upper")
    subprocess.run(["cp", "-a", tmp_path / "upper", tmp_path / "expected"], check=True)
    (tmp_path / "tree").mkdir()
    fold([tmp_path / "upper"], AUFS, tmp_path / "tree")
    assert differences(describe(tmp_path / "tree"), describe(tmp_path / "expected")) == []
