"""diff, apply_diff, changes and sizes agree with each other and with the tree."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from lamina.drivers import Driver
from lamina.types import LayerId
from tests import support
from tests.conformance.conftest import Limits
from tests.conformance.trees import entry, facts, names_in, tar

BASE, SNAP, TOP, COPY = LayerId("base"), LayerId("snap"), LayerId("top"), LayerId("copy")


def fill(root: Path, limits: Limits) -> None:
    """Some of everything that an ordinary tree has."""
    (root / "dir/sub").mkdir(parents=True)
    (root / "dir/file").write_text("file")
    (root / "dir/sub/deep").write_text("deep")
    (root / "gone").write_text("gone")
    (root / "gone dir/inner").mkdir(parents=True)
    (root / "gone dir/inner/x").touch()
    (root / "becomes a dir").write_text("")
    (root / "becomes a file").mkdir()
    (root / "becomes a file/x").touch()
    (root / "becomes a link").write_text("")
    (root / "link").symlink_to("dir/file")
    (root / "dangling").symlink_to("/nowhere")
    os.link(root / "dir/file", root / "hard")
    (root / "ünï\udcffcode").write_text("name")
    (root / ("n" * limits.longest_name)).write_text("long")
    os.utime(root / "dir/file", ns=(1, 1_234_567_890_123_456_789))
    (root / "moved").write_text("moved")


def alter(root: Path) -> None:
    """Every kind of change to what :func:`fill` made."""
    (root / "gone").unlink()
    shutil.rmtree(root / "gone dir")
    (root / "becomes a dir").unlink()
    (root / "becomes a dir").mkdir()
    (root / "becomes a dir/new").write_text("new")
    shutil.rmtree(root / "becomes a file")
    (root / "becomes a file").write_text("now a file")
    (root / "becomes a link").unlink()
    (root / "becomes a link").symlink_to("dir")
    (root / "dir/file").write_text("altered")
    (root / "dir/added").write_text("added")
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    (root / "moved").rename(root / "dir/sub/moved")
    (root / "dangling").unlink()
    shutil.rmtree(root / "dir/sub")
    (root / "dir/sub").mkdir()
    (root / "dir/sub/again").write_text("again")


ALTERED = """\
C /becomes a dir
A /becomes a dir/new
C /becomes a file
C /becomes a link
D /dangling
C /dir
A /dir/added
C /dir/file
C /dir/sub
A /dir/sub/again
D /dir/sub/deep
D /gone
D /gone dir
C /link
D /moved
"""


@pytest.fixture
def two(driver: Driver, limits: Limits) -> Driver:
    """BASE filled, SNAP on it altered."""
    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root:
        fill(root, limits)
    driver.create_read_write(SNAP, BASE)
    with driver.mounted(SNAP) as root:
        alter(root)
    return driver


def test_changes_of_every_kind(two: Driver) -> None:
    # "hard" is one file with "dir/file": a union breaks that when it copies up, a copy does not.
    got = [str(c) for c in two.changes(SNAP, BASE) if str(c) != "C /hard"]
    assert got == ALTERED.splitlines()


def test_a_layer_without_parent_is_all_additions(two: Driver) -> None:
    assert {c.kind.value for c in two.changes(BASE)} == {"A"}
    with two.mounted(BASE) as root:
        here = {b"/" + os.fsencode(p.relative_to(root)) for p in root.rglob("*")}
    assert {c.path for c in two.changes(BASE)} == here


def test_an_untouched_layer_changes_nothing(two: Driver) -> None:
    two.create_read_write(TOP, SNAP)
    assert two.changes(TOP, SNAP) == []
    assert two.diff_size(TOP, SNAP) == 0
    with two.mounted(TOP) as root:
        for path in root.rglob("*"):
            path.lstat()
            if path.is_file():
                path.read_bytes()
    assert two.changes(TOP, SNAP) == []


@pytest.mark.parametrize("mounted", [False, True])
def test_diff_then_apply_gives_the_same_tree(two: Driver, mounted: bool) -> None:
    with two.mounted(SNAP) as root:
        before = facts(root)
        if mounted:
            with two.diff(SNAP, BASE) as stream:
                packed = stream.read()
    if not mounted:
        with two.diff(SNAP, BASE) as stream:
            packed = stream.read()
    two.create(COPY, BASE)
    size = two.apply_diff(COPY, BASE, io.BytesIO(packed))
    with two.mounted(COPY) as root:
        assert facts(root) == before
    assert size == two.diff_size(COPY, BASE) == two.diff_size(SNAP, BASE)
    assert two.changes(COPY, BASE) == two.changes(SNAP, BASE)


def test_the_same_tree_gives_the_same_bytes(two: Driver) -> None:
    with two.diff(SNAP, BASE) as one, two.diff(SNAP, BASE) as other:
        first = one.read()
        assert first == other.read()
    two.create(COPY, BASE)
    two.apply_diff(COPY, BASE, io.BytesIO(first))
    with two.diff(COPY, BASE) as again:
        assert again.read() == first


def test_a_whole_tree_is_the_diff_against_nothing(two: Driver) -> None:
    with two.mounted(SNAP) as root:
        before = facts(root)
    two.create(COPY)
    with two.diff(SNAP, None) as stream:
        two.apply_diff(COPY, None, stream)
    with two.mounted(COPY) as root:
        assert facts(root) == before


def test_a_diff_against_a_distant_ancestor(two: Driver) -> None:
    two.create_read_write(TOP, SNAP)
    with two.mounted(TOP) as root:
        (root / "gone").write_text("back")
        (root / "dir/added").unlink()
        (root / "new").touch()
        shutil.rmtree(root / "dir/sub")
        before = facts(root)
    changes = [str(c) for c in two.changes(TOP, BASE)]
    assert "C /gone" in changes
    assert not [line for line in changes if line.endswith(" /dir/added")]
    assert "D /dir/sub" in changes
    two.create(COPY, BASE)
    with two.diff(TOP, BASE) as stream:
        assert two.apply_diff(COPY, BASE, stream) == two.diff_size(TOP, BASE)
    with two.mounted(COPY) as root:
        assert facts(root) == before


def test_a_diff_against_an_unrelated_layer(two: Driver) -> None:
    other = LayerId("other")
    two.create_read_write(other)
    with two.mounted(other) as root:
        (root / "dir").mkdir()
        (root / "dir/file").write_text("other")
        (root / "only here").touch()
    with two.mounted(SNAP) as root:
        before = facts(root)
    assert "D /only here" in [str(c) for c in two.changes(SNAP, other)]
    two.create(COPY, other)
    with two.diff(SNAP, other) as stream:
        two.apply_diff(COPY, other, stream)
    with two.mounted(COPY) as root:
        assert facts(root) == before


def test_a_diff_can_be_dropped_in_the_middle(two: Driver) -> None:
    stream = two.diff(SNAP, BASE)
    assert len(stream.read(512)) == 512
    stream.close()
    two.remove(SNAP)


def test_size_counts_bytes_of_files_once(driver: Driver) -> None:
    driver.create(BASE)
    stream = tar(
        "dir/",
        ("dir/a", b"x" * 1000),
        entry("dir/b", tarfile.LNKTYPE, linkname="dir/a"),
        entry("dir/l", tarfile.SYMTYPE, linkname="a"),
        ("c", b"y" * 24),
        ".wh.nothing",
    )
    assert driver.apply_diff(BASE, None, stream) == 1024
    assert driver.diff_size(BASE, None) == 1024


def test_a_link_to_a_lower_symlink_that_is_replaced_has_no_size(driver: Driver) -> None:
    driver.create(BASE)
    driver.apply_diff(BASE, None, tar(entry("link", tarfile.SYMTYPE, linkname="to")))
    driver.create(TOP, BASE)
    link = entry("d", tarfile.LNKTYPE, linkname="link")
    other = entry("d", tarfile.SYMTYPE, linkname="x")
    assert driver.apply_diff(TOP, BASE, tar(link, other, ".wh.link")) == 0


def test_applying_on_top_of_content_merges(driver: Driver) -> None:
    driver.create(BASE)
    driver.apply_diff(BASE, None, tar("dir/", ("dir/a", b"1"), ("b", b"1")))
    driver.apply_diff(BASE, None, tar("dir/", ("dir/c", b"2"), ("b", b"22")))
    with driver.mounted(BASE) as root:
        assert (root / "b").read_text() == "22"
        assert sorted(p.name for p in (root / "dir").iterdir()) == ["a", "c"]


def test_applying_on_top_of_content_hides_what_the_tar_deletes(driver: Driver) -> None:
    driver.create(BASE)
    driver.apply_diff(BASE, None, tar("x/", ("x/y", b"1")))
    driver.create(TOP, BASE)
    first = tar(
        "dir/", ("dir/a", b"1"), ("b", b"1"), "e/", ("e/f", b"1"), ("x/z", b"1"), ("g", b"1")
    )
    driver.apply_diff(TOP, BASE, first)
    link = entry("h", tarfile.LNKTYPE, linkname="g")
    driver.apply_diff(TOP, BASE, tar(".wh.b", ".wh.dir", "dir/", "e/.wh.f", "x/.wh..wh..opq", link))
    with driver.mounted(TOP) as root:
        assert sorted(os.listdir(root)) == ["dir", "e", "g", "h", "x"]
        assert [os.listdir(root / name) for name in ("dir", "e", "x")] == [[], [], []]
        assert (root / "h").read_bytes() == b"1"


def test_applying_against_another_parent_keeps_what_the_tar_does_not_name(two: Driver) -> None:
    """The naive way: the tree is made what it would be on that parent."""
    other = LayerId("other")
    two.create(other)
    two.create_read_write(COPY, BASE)
    with two.mounted(COPY) as root:
        root.chmod(0o711)
        (root / "dir").chmod(0o700)
    size = two.apply_diff(COPY, other, tar(("dir/added", b"new"), ".wh.gone"))
    assert size == 3
    with two.mounted(COPY) as root:
        assert (root / "dir/added").read_bytes() == b"new"
        assert not (root / "gone").exists()
        assert stat.S_IMODE(root.stat().st_mode) == 0o711
        assert stat.S_IMODE((root / "dir").stat().st_mode) == 0o700


def test_a_getter_reads_the_layers_own_files_only(two: Driver, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    with two.mounted(SNAP) as root:
        (root / "escape").symlink_to(tmp_path)
        (root / "dir/direct").symlink_to(tmp_path / "outside")
    getter = two.diff_getter(SNAP)
    try:
        with getter.open(b"dir/file") as file:
            assert file.read() == b"altered"
        with getter.open(b"/dir/sub/again") as file:
            assert file.read() == b"again"
        for bad in (b"gone", b"../base", b"escape/outside", b"dir/direct", b"dir/../../../x"):
            with pytest.raises(OSError):
                getter.open(bad)
    finally:
        getter.close()


@pytest.mark.root
def test_what_only_root_can_make_survives(driver: Driver) -> None:
    support.need("setcap", "setfacl")
    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root:
        (root / "suid").write_text("s")
        os.chown(root / "suid", 1000, 2000)
        (root / "suid").chmod(0o6755)
        (root / "sticky").mkdir()
        (root / "sticky").chmod(0o1777)
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(root / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 200))
        os.mkfifo(root / "fifo")
        (root / "cap").write_text("c")
        support.run("setcap", "cap_net_raw+ep", root / "cap")
        (root / "acl").write_text("a")
        support.run("setfacl", "-m", "u:1234:rw", root / "acl")
        os.setxattr(root / "cap", "user.note", b"\0binary\xff")
        (root / "owned").symlink_to("x")
        os.chown(root / "owned", 12, 34, follow_symlinks=False)
        os.truncate(root / "acl", 3_000_000)
        before = facts(root)
    driver.create(COPY)
    with driver.diff(BASE) as stream:
        driver.apply_diff(COPY, None, stream)
    with driver.mounted(COPY) as root:
        assert facts(root) == before


@pytest.mark.allow_log("sock")
def test_sockets_are_left_out(driver: Driver) -> None:
    import socket

    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root, socket.socket(socket.AF_UNIX) as server:
        here = os.open(root, os.O_PATH)
        try:
            server.bind(f"/proc/self/fd/{here}/sock")
        finally:
            os.close(here)
        (root / "file").touch()
    with driver.diff(BASE) as stream:
        assert [n for n in names_in(stream) if n not in (".", "./", "")] == ["file"]


def _step(root: Path, chance: random.Random) -> None:
    names = ["a", "b", "c"]
    path = root.joinpath(*chance.choices(names, k=chance.randint(1, 3)))
    what = chance.choice(["file", "dir", "link", "hard", "remove", "chmod"])
    try:
        if what == "file":
            path.write_bytes(chance.randbytes(chance.randint(0, 40)))
        elif what == "dir":
            path.mkdir(parents=chance.random() < 0.5)
        elif what == "link":
            path.symlink_to(chance.choice(["a", "../b", "/c", "nowhere"]))
        elif what == "hard":
            os.link(root / chance.choice(names), path, follow_symlinks=False)
        elif what == "chmod":
            if not path.is_symlink():
                path.chmod(chance.choice([0o700, 0o755, 0o2775]))
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        pass


@pytest.mark.parametrize("seed", range(12))
def test_random_histories_round_trip(driver: Driver, seed: int) -> None:
    chance = random.Random(seed)
    parent: LayerId | None = None
    copied: LayerId | None = None
    for number in range(5):
        id, copy = LayerId(f"l{number}"), LayerId(f"c{number}")
        driver.create_read_write(id, parent)
        with driver.mounted(id) as root:
            for _ in range(30):
                _step(root, chance)
        with driver.mounted(id) as root:  # again: a union's memory may differ from what it wrote
            before = facts(root)
        driver.create(copy, copied)
        with driver.diff(id, parent) as stream:
            size = driver.apply_diff(copy, copied, stream)
        with driver.mounted(copy) as root:
            assert facts(root) == before, f"layer {number}"
        assert size == driver.diff_size(copy, copied)
        assert driver.changes(copy, copied) == driver.changes(id, parent)
        parent, copied = id, copy
