"""The root of a dockerd that ran with ``--userns-remap``: its files have shifted owners."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from lamina import Store
from lamina.errors import OptionUnsupported, StoreError
from lamina.store.adopt import DockerSource, Way
from lamina.store.rewrite import Rewrite
from tests.adopt import trees
from tests.adopt.conftest import CONTAINERS
from tests.adopt.odd import add_layer_with_whiteout_beside
from tests.adopt.test_source import BASE, BASE_CHAIN

pytestmark = pytest.mark.root

SHIFT = 100_000


@pytest.fixture
def mapped_root(docker_root: Path) -> Path:
    """The Docker root as such a dockerd would have it."""
    add_layer_with_whiteout_beside(docker_root, f"sha256:{BASE_CHAIN}", BASE)
    root = docker_root.parent / f"{SHIFT}.{SHIFT}"
    docker_root.rename(root)
    for part in ("diff", "mnt"):
        for top, directories, names in os.walk(os.fsencode(root / "aufs" / part)):
            for name in (*directories, *names):
                _shift(os.path.join(top, name))
    return root


def _shift(path: bytes) -> None:
    status = os.lstat(path)
    if status.st_uid >= SHIFT:
        return  # the other name of a file, or an owner that has no place in the namespace
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }
    os.chown(path, status.st_uid + SHIFT, status.st_gid + SHIFT, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(path, stat.S_IMODE(status.st_mode))
    if "security.capability" in attributes:  # chown(2) takes it away
        os.setxattr(path, "security.capability", attributes["security.capability"])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _differences(root: Path, described: dict[str, Any]) -> list[str]:
    ours = trees.tree(root)
    # The tar has it; Docker left attributes without a value out when it unpacked.
    ours["xattr/user"]["xattrs"].pop("user.empty", None)
    return trees.differences(ours, trees.expected(described))


@pytest.mark.parametrize("driver", ["overlay", "vfs"])
def test_owners_are_those_that_containers_see(
    mapped_root: Path, tmp_path: Path, expected: dict[str, Any], driver: str
) -> None:
    before = trees.fingerprint(mapped_root)
    wrong = []
    with (
        Store(tmp_path / "s", run=tmp_path / "r", driver=driver) as store,
        DockerSource(mapped_root) as source,
    ):
        plan = store.adopt(source)
        assert not plan.linking
        result = plan.run()
        assert trees.fingerprint(mapped_root) == before
        assert (result.images, result.containers, result.faults) == (10, 4, [])
        for name, described in expected["images"].items():
            with store.container(name) as box:
                wrong += _differences(box.root, described)
        for name, described in expected["containers"].items():
            with store.open(name).mounted() as root:
                wrong += _differences(root, described)
        assert not wrong, "\n".join(wrong[:40])
        assert store.check(contents=True) == []


def test_an_owner_that_has_no_place_in_the_namespace_is_named(
    mapped_root: Path, tmp_path: Path
) -> None:
    mounts = mapped_root / "image/aufs/layerdb/mounts"
    upper = (mounts / CONTAINERS["c-stopped"] / "mount-id").read_text()
    (mapped_root / "aufs/diff" / upper / "odd").touch()
    with (
        Store(tmp_path / "s", run=tmp_path / "r", driver="overlay") as store,
        DockerSource(mapped_root) as source,
    ):
        result = store.adopt(source).run()
    assert (result.images, result.containers) == (10, 3)
    assert [fault.id for fault in result.faults] == ["c-stopped"]
    assert "odd: user id 0 of the host has no place" in result.faults[0].what


def test_it_is_not_read_in_place(mapped_root: Path, tmp_path: Path) -> None:
    with (
        Store(tmp_path / "s", run=tmp_path / "r", driver="aufs") as store,
        DockerSource(mapped_root) as source,
        pytest.raises(OptionUnsupported, match="owners of a user namespace"),
    ):
        store.adopt(source, way=Way.IN_PLACE)


def test_the_directory_above_says_which_one_is_meant(mapped_root: Path) -> None:
    with pytest.raises(StoreError, match=f"userns-remap: give {mapped_root}"):
        DockerSource(mapped_root.parent)


def test_rewritten_it_stays_that_of_the_same_namespace(mapped_root: Path) -> None:
    with DockerSource(mapped_root, alone=True) as source:
        assert Rewrite(source).run().faults == []
    home = mapped_root / "overlay2"
    for path in (home, *home.glob("?" * 64)):
        status = path.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, SHIFT, 0o710)
    for path in (*home.glob("*/diff"), *home.glob("*/work"), *home.glob("*/diff/etc/both")):
        assert (path.stat().st_uid, path.stat().st_gid) == (SHIFT, SHIFT)
    assert list(home.glob("*/diff/etc/both")), "it was unpacked"
