"""A plain tree copied whole."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lamina.archive.copytree import copy_tree
from tests import support
from tests.archive.test_unpack import make_tree
from tests.archive.trees import describe, differences
from tests.users import User

pytestmark = pytest.mark.root


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_the_copy_is_the_tree(filesystem: str, request: pytest.FixtureRequest) -> None:
    support.need("setfacl", "setcap")
    place: Path = request.getfixturevalue(filesystem)
    make_tree(place / "tree")
    before = describe(place / "tree")
    size = copy_tree(place / "tree", place / "copy")
    assert differences(describe(place / "copy"), before) == []
    assert describe(place / "tree") == before
    assert size == 8000 + 10 + 1 + 1 + 1 + (10 << 20) + 4
    assert (place / "copy/sparse").stat().st_blocks <= (place / "tree/sparse").stat().st_blocks


def test_another_file_system_gets_the_same(ext4: Path, xfs: Path) -> None:
    support.need("setfacl", "setcap")
    make_tree(ext4 / "tree")
    (xfs / "copy").mkdir()
    copy_tree(ext4 / "tree", xfs / "copy")
    assert differences(describe(xfs / "copy"), describe(ext4 / "tree")) == []


def test_sockets_are_left_out_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(tmp_path / "tree", os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    os.link(tmp_path / "tree/socket", tmp_path / "tree/socket2")
    warnings: list[str] = []
    copy_tree(tmp_path / "tree", tmp_path / "copy", warn=warnings.append)
    assert os.listdir(tmp_path / "copy") == []
    assert len(warnings) == 1 and "socket" in warnings[0]


def test_ten_thousand_directories_deep(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for name in ["tree"] + ["d"] * 10_000:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("a", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.link("a", "b", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    copy_tree(tmp_path / "tree", tmp_path / "copy")
    fd = os.open(tmp_path / "copy", os.O_RDONLY)
    for _ in range(10_000):
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert sorted(os.listdir(fd)) == ["a", "b"]
    os.close(fd)


def test_an_ordinary_user_copies_what_it_can_read(ordinary_user: User) -> None:
    def check() -> None:
        tree, copy = Path("tree").absolute(), Path("copy").absolute()
        (tree / "closed").mkdir(parents=True)
        (tree / "closed/file").write_text("x")
        (tree / "closed/file").chmod(0o444)
        (tree / "closed").chmod(0o555)
        os.link(tree / "closed/file", tree / "link")
        copy_tree(tree, copy)
        assert differences(describe(copy), describe(tree)) == []
        (tree / "closed").chmod(0o755)
        (copy / "closed").chmod(0o755)

    ordinary_user.call(check)
