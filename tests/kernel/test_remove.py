"""remove_tree removes all of the tree, and nothing else."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lamina.kernel import path as kpath
from lamina.kernel import remove
from lamina.kernel.remove import remove_tree
from tests.support import need, run
from tests.users import User


@pytest.fixture(params=["openat2", "steps"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "steps":
        monkeypatch.setattr(kpath, "_have_openat2", lambda: False)


def grow(top: Path) -> Path:
    (top / "a/b/c").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "a/file").write_text("x")
    (top / "a/b/link").symlink_to("/etc")
    os.mkfifo(top / "a/b/fifo")
    os.mkdir(os.fsencode(top) + b"/\xff\n")
    return top


def test_a_tree_goes_and_its_neighbours_stay(engine: None, tmp_path: Path) -> None:
    grow(tmp_path / "tree")
    (tmp_path / "neighbour").mkdir()
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == ["neighbour"]


@pytest.mark.parametrize("spelling", ["tree", "tree/", "./tree", "other/../tree", b"tree"])
def test_the_path_may_be_spelled_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str | bytes
) -> None:
    (tmp_path / "other").mkdir()
    grow(tmp_path / "tree")
    monkeypatch.chdir(tmp_path)
    remove_tree(spelling)
    assert os.listdir(tmp_path) == ["other"]


@pytest.mark.parametrize("spelling", ["/", ".", "..", "tree/..", ""])
def test_what_has_no_name_of_its_own_is_refused(spelling: str) -> None:
    with pytest.raises(OSError) as caught:
        remove_tree(spelling)
    assert caught.value.errno == errno.EINVAL


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_tree(tmp_path / "missing")
    remove_tree(tmp_path / "missing/deeper")


def test_a_file_and_a_link_are_removed_themselves(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/keep").write_text("x")
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "file").write_text("x")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "file")
    assert os.listdir(tmp_path) == ["dir"]
    assert (tmp_path / "dir/keep").exists()


def test_ten_thousand_directories_deep(engine: None, tmp_path: Path) -> None:
    top = tmp_path / "deep"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(10_000):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    remove_tree(top)
    assert not top.exists()


def test_a_broad_and_deep_tree_comes_back_through_its_parents(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    spine = top / "/".join(f"level{n}" for n in range(100))
    spine.mkdir(parents=True)
    for parent in [p for p in spine.parents if p.is_relative_to(top)]:
        for side in ("left", "right"):
            (parent / side / "leaf").mkdir(parents=True)
    remove_tree(top)
    assert not top.exists()


@pytest.mark.root
def test_mounts_below_are_detached_and_what_they_show_survives(
    engine: None, tmp_path: Path
) -> None:
    """A bind mount has the device of its surroundings: only the mount itself tells."""
    tree, outside = grow(tmp_path / "tree"), tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (tree / "a/b/c/under").write_text("hidden below the mount")
    (tree / "stacked").mkdir()
    run("mount", "--bind", outside, tree / "a/b/c")
    run("mount", "--bind", outside, tree / "stacked")
    run("mount", "-t", "tmpfs", "tmpfs", tree / "stacked")
    run("mount", "--bind", outside / "precious", tree / "a/file")
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "precious").read_text() == "x"
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
def test_a_tree_that_is_a_mount_point_itself(engine: None, tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    tree.mkdir()
    outside.mkdir()
    (outside / "precious").write_text("x")
    run("mount", "--bind", outside, tree)
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "precious").exists()


@pytest.mark.root
def test_a_mount_in_use_is_detached(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree")
    run("mount", "-t", "tmpfs", "tmpfs", tree / "empty")
    with open(tree / "empty/open", "w") as user:
        remove_tree(tree)
        assert not tree.exists()
        user.write("still there for who has it open")


@pytest.mark.root
def test_a_mount_that_may_not_be_detached_stops_the_removal(
    engine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "mnt").mkdir(parents=True)
    outside.mkdir()
    (outside / "precious").write_text("x")
    run("mount", "--bind", outside, tree / "mnt")
    monkeypatch.setattr(remove, "umount2", refuse)
    try:
        with pytest.raises(OSError) as caught:
            remove_tree(tree)
    finally:
        run("umount", tree / "mnt")
    assert caught.value.errno == errno.EBUSY
    assert caught.value.filename == str(tree / "mnt")
    assert (outside / "precious").exists()


@pytest.mark.root
def test_a_mount_in_another_namespace_is_no_obstacle(tmp_path: Path) -> None:
    need("unshare")
    tree = grow(tmp_path / "tree")
    script = f"mount -t tmpfs t {tree}/empty && echo ready && read x"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        remove_tree(tree)
        assert not tree.exists()


@pytest.mark.root
@pytest.mark.parametrize("flag", ["+i", "+a"])
def test_immutable_and_append_only_files_go_too(tmp_path: Path, flag: str) -> None:
    need("chattr")
    tree = grow(tmp_path / "tree")
    (tree / "empty/inside").write_text("x")
    for name in ("a/file", "a/b/c", "empty", ""):
        run("chattr", flag, tree / name)
    remove_tree(tree)
    assert not tree.exists()


@pytest.mark.root
def test_a_protected_directory_above_the_tree_stays_protected(tmp_path: Path) -> None:
    need("chattr")
    grow(tmp_path / "holder/tree")
    run("chattr", "+i", tmp_path / "holder")
    try:
        with pytest.raises(PermissionError):
            remove_tree(tmp_path / "holder/tree")
        assert b"i" in run("lsattr", "-d", tmp_path / "holder").stdout.split()[0]
    finally:
        run("chattr", "-i", tmp_path / "holder")


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400, 0o500])
def test_an_ordinary_user_removes_directories_without_permissions(
    ordinary_user: User, mode: int
) -> None:
    def grow_and_remove() -> bool:
        tree = grow(ordinary_user.home / f"tree{mode}")
        for name in ("a/b/c", "a/b", "a", "empty", ""):
            (tree / name).chmod(mode)
        remove_tree(tree)
        return tree.exists()

    assert not ordinary_user.call(grow_and_remove)


@pytest.mark.root
def test_an_ordinary_user_is_told_what_cannot_be_removed(ordinary_user: User) -> None:
    tree = grow(ordinary_user.home / "tree")
    with pytest.raises(PermissionError) as caught:
        ordinary_user.call(remove_tree, tree)
    assert str(caught.value.filename).startswith(str(tree))
    remove_tree(tree)


def test_something_busy_is_tried_again_and_then_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path / "tree")
    real, refusals = os.rmdir, itertools.count(1)

    def rmdir(name: str, *, dir_fd: int, limit: int = 3) -> None:
        if name == "empty" and next(refusals) <= limit:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(remove, "BUSY_PAUSE", 0.01)
    monkeypatch.setattr(os, "rmdir", rmdir)
    remove_tree(tree)
    assert not tree.exists()

    grow(tree)
    refusals = itertools.count(-1000)
    with pytest.raises(OSError) as caught:
        remove_tree(tree)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.filename == str(tree / "empty")


def test_two_removals_at_once_both_succeed(tmp_path: Path) -> None:
    for round_ in range(5):
        tree = tmp_path / f"tree{round_}"
        for number in range(300):
            (tree / f"{number % 20}/{number}").mkdir(parents=True)
        errors: list[BaseException] = []

        def removal(tree: Path = tree, errors: list[BaseException] = errors) -> None:
            try:
                remove_tree(tree)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=removal) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert not tree.exists()


def test_files_made_meanwhile_go_too(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(50):
        (tree / str(number)).mkdir(parents=True)
    until = time.monotonic() + 0.3

    def creator() -> None:
        for number in itertools.count():
            if time.monotonic() > until:
                return
            try:
                (tree / str(number % 50) / f"new{number}").mkdir()
            except OSError:
                pass

    thread = threading.Thread(target=creator)
    thread.start()
    try:
        remove_tree(tree)
    finally:
        thread.join()
    assert not tree.exists()


def test_a_directory_swapped_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    stop = threading.Event()

    def swapper(tree: Path) -> None:
        while not stop.is_set():
            try:
                os.rename(tree / "victim", tree / "was")
                os.symlink(outside, tree / "victim")
                os.unlink(tree / "victim")
                os.rename(tree / "was", tree / "victim")
            except OSError:
                pass

    for round_ in range(30):
        tree = tmp_path / f"tree{round_}"
        for number in range(10):
            (tree / "victim" / str(number)).mkdir(parents=True)
        stop.clear()
        thread = threading.Thread(target=swapper, args=(tree,))
        thread.start()
        try:
            remove_tree(tree)
        except OSError as error:
            assert error.errno in (errno.ENOTEMPTY, errno.ESTALE)  # a tree that never rests
        finally:
            stop.set()
            thread.join()
    assert (outside / "precious").read_text() == "x"


def test_descriptors_are_closed_after_success_and_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    remove_tree(grow(tmp_path / "tree"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    grow(tmp_path / "tree")
    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(OSError) as caught:
        remove_tree(tmp_path / "tree")
    assert caught.value.errno == errno.EIO
    assert len(os.listdir("/proc/self/fd")) == before
