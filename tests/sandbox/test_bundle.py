"""Bundles: crun and runc start them, and a half one is never there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lamina.archive.copytree import copy_tree
from lamina.errors import InvalidName, UserNotFound
from lamina.oci import ImageConfig, RunConfig
from lamina.oci.conversion import image_volumes
from lamina.sandbox import bundle as bundle_module
from lamina.sandbox.bundle import Command, write_bundle
from lamina.sandbox.run import Bind
from tests.sandbox.roots import make_small_root, tree
from tests.sandbox.runtimes import NAMES, start

pytestmark = pytest.mark.root

SOURCE = str(Path(bundle_module.__file__).parents[2])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "root"
    make_small_root(path)
    (path / "etc").mkdir()
    (path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\nann:x:1000:\nstaff:x:50:ann\n")
    (path / "data").mkdir(mode=0o750)
    os.chown(path / "data", 1000, 50)
    os.link(path / "etc/passwd", path / "data/passwd")
    os.setxattr(path / "data", "user.note", b"kept")
    os.mkfifo(path / "data/fifo")
    os.mknod(path / "data/null", 0o20666, os.makedev(1, 3))
    (path / os.fsdecode(b"data/\xff")).write_text("x")
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", ["none", "host"])
def test_a_bundle_is_started_by_runtimes(
    root: Path, tmp_path: Path, name: str, network: str
) -> None:
    (tmp_path / "shared").mkdir()
    script = "echo $A $HOME $PWD $$; id -u; id -g; id -G; uname -n; touch /v/x /w/x; exit 7"
    command = Command(
        ["sh", "-c", script], {"A": "b c"}, "/srv/app", "ann", network, "box",
        mounts=[Bind(tmp_path / "shared", "/v", read_only=True), Bind(tmp_path / "shared", "/w")],
    )  # fmt: skip
    (tmp_path / "shared").chmod(0o777)
    write_bundle(tmp_path / "bundle", root, command)
    done = start(name, tmp_path / "bundle", tmp_path / "state")
    assert done.stdout.splitlines() == ["b c /home /srv/app 1", "1000", "1000", "1000 50", "box"]
    assert "Read-only file system" in done.stderr
    assert done.returncode == 7
    assert os.listdir(tmp_path / "shared") == ["x"]


@pytest.mark.parametrize("name", NAMES)
def test_a_volume_begins_as_the_image_has_it_and_is_not_of_the_root(
    root: Path, tmp_path: Path, name: str
) -> None:
    volumes = image_volumes(ImageConfig(config=RunConfig(volumes={"/etc": {}, "/new": {}})))
    script = "cat /etc/group && echo x > /etc/x && echo y > /new/y && grep ' /etc' /proc/mounts"
    command = Command(["sh", "-c", script], network="none")
    write_bundle(tmp_path / "bundle", root, command, volumes=volumes)
    done = start(name, tmp_path / "bundle", tmp_path / "state")
    assert "staff:x:50:ann" in done.stdout, done.stderr
    assert "tmpfs /etc tmpfs" in done.stdout
    assert sorted(os.listdir(tmp_path / "bundle/rootfs/etc")) == ["group", "passwd"]
    assert os.listdir(tmp_path / "bundle/rootfs/new") == []


def test_the_root_is_a_whole_copy_with_owners_links_and_attributes(
    root: Path, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bundle", root, Command(["sh"]))
    copy = tmp_path / "bundle/rootfs"
    assert tree(copy) == tree(root)
    assert os.path.samefile(copy / "etc/passwd", copy / "data/passwd")
    assert os.getxattr(copy / "data", "user.note") == b"kept"
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path) == ["bundle"]


def test_an_empty_directory_is_filled_and_one_that_is_not_refused(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", root, Command(["sh"]))
    assert sorted(os.listdir(tmp_path / "empty")) == ["config.json", "rootfs"]
    with pytest.raises(InvalidName, match="not empty"):
        write_bundle(tmp_path / "empty", root, Command(["sh"]))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidName, match="no directory"):
        write_bundle(tmp_path / "file", root, Command(["sh"]))
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "no/parent", root, Command(["sh"]))


def test_what_cannot_be_is_refused_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for command, error in (
        (Command([]), InvalidName),
        (Command(["\udcff"]), InvalidName),
        (Command(["sh"], user="nobody-here"), UserNotFound),
    ):
        with pytest.raises(error):
            write_bundle(target, root, command)
    assert os.listdir(tmp_path) == []


def test_a_copy_that_fails_leaves_nothing(root: Path, tmpfs_small: Path) -> None:
    (tmpfs_small / "ballast").write_bytes(bytes(3_500_000))
    with pytest.raises(OSError, match="No space left"):
        write_bundle(tmpfs_small / "bundle", root, Command(["sh"]))
    assert os.listdir(tmpfs_small) == ["ballast"]


def test_one_that_came_first_wins(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: Any) -> int:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle/theirs").write_text("")
        return copy_tree(*args)

    monkeypatch.setattr(bundle_module, "copy_tree", slow)
    with pytest.raises(InvalidName, match="meanwhile"):
        write_bundle(tmp_path / "bundle", root, Command(["sh"]))
    assert os.listdir(tmp_path) == ["bundle"]
    assert os.listdir(tmp_path / "bundle") == ["theirs"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lamina.sandbox import bundle
copy = bundle.copy_tree
def die(*args):
    copy(*args)
    os.kill(os.getpid(), signal.SIGKILL)
bundle.copy_tree = die
bundle.write_bundle(Path(sys.argv[1]), Path(sys.argv[2]), bundle.Command(["sh"]))
"""


def test_a_maker_that_was_killed_leaves_no_half_bundle_and_the_next_clears_up(
    root: Path, tmp_path: Path
) -> None:
    target = tmp_path / "my[bundle]"
    argv = [sys.executable, "-c", KILLED, str(target), str(root)]
    done = subprocess.run(argv, env={"PYTHONPATH": SOURCE}, check=False)
    assert done.returncode == -9
    assert not target.exists()
    assert len(os.listdir(tmp_path)) == 1
    write_bundle(target, root, Command(["sh"]))
    assert os.listdir(tmp_path) == [target.name]


def test_one_that_another_is_making_is_left_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*args: Any) -> int:
        monkeypatch.setattr(bundle_module, "copy_tree", copy_tree)
        write_bundle(tmp_path / "bundle", root, Command(["true"]))
        assert len(os.listdir(tmp_path)) == 2
        return copy_tree(*args)

    monkeypatch.setattr(bundle_module, "copy_tree", meanwhile)
    with pytest.raises(InvalidName, match="meanwhile"):
        write_bundle(tmp_path / "bundle", root, Command(["sh"]))
    document = json.loads((tmp_path / "bundle/config.json").read_bytes())
    assert document["process"]["args"] == ["true"]
    assert os.listdir(tmp_path) == ["bundle"]
