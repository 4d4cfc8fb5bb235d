"""Everything that Docker had is there again, in a store of each driver, as AUFS showed it."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamina import Store
from lamina.errors import LayerBroken, OptionUnsupported
from lamina.store import SyncPolicy
from lamina.store.adopt import Adopted, DockerSource, Way
from tests import support
from tests.adopt import trees

pytestmark = pytest.mark.root

WAYS = [
    ("overlay", Way.LINK),
    ("overlay", Way.COPY),
    ("vfs", Way.COPY),
    ("aufs", Way.LINK),
    ("aufs", Way.IN_PLACE),
]


@contextmanager
def adopted(root: Path, tmp_path: Path, driver: str, way: Way) -> Iterator[tuple[Store, Adopted]]:
    """A store with everything that the Docker root has."""
    if driver == "aufs":
        support.need("fuse-overlayfs")
    with Store(
        tmp_path / "store", run=tmp_path / "run", driver=driver, sync=SyncPolicy.NONE
    ) as store:
        with DockerSource(root) as source:
            result = store.adopt(source, way=way).run()
        yield store, result


@pytest.mark.parametrize(("driver", "way"), WAYS)
def test_all_images_and_containers_are_as_the_aufs_kernel_showed_them(
    docker_root: Path, tmp_path: Path, expected: dict[str, Any], driver: str, way: Way
) -> None:
    before = trees.fingerprint(docker_root)
    wrong = []
    with adopted(docker_root, tmp_path, driver, way) as (store, result):
        assert (result.images, result.containers, result.faults) == (9, 4, [])
        assert trees.fingerprint(docker_root) == before, "the source was changed"
        for name, described in expected["images"].items():
            image = store.image(name)
            assert (image.id, image.diff_ids) == (described["id"], described["diff_ids"])
            assert image.chain_id == described["chain_id"]
            with store.container(image) as box:
                found = trees.differences(trees.tree(box.root), trees.expected(described))
            wrong += [f"{name}: {line}" for line in found]
        for name, described in expected["containers"].items():
            with store.open(name).mounted() as root:
                found = trees.differences(trees.tree(root), trees.expected(described))
            wrong += [f"{name}: {line}" for line in found]
        assert not wrong, "\n".join(wrong[:40])
        assert store.check(contents=True) == [], "a layer does not give back its tar"


_QUIRKS = {
    "A /data/sl/abs",  # a changed link: Docker looked where it leads, and found nothing there
    "C /data/metadir/dtouch",  # a directory of which the time alone changed, which ours leaves out
    "C /rootdir",  # new, after an image layer had removed it: Docker asks each layer by itself
}


def _shown(described: dict[str, Any]) -> set[str]:
    """What ``docker diff`` said, less its quirks: marks shown as files, bookkeeping of AUFS."""
    lines = described["docker_diff"]
    if not isinstance(lines, list):
        return set()  # it was not asked, or failed
    return {line for line in lines if ".wh." not in line and line not in _QUIRKS}


@pytest.mark.parametrize(("driver", "way"), WAYS)
def test_changes_are_those_that_docker_diff_showed(
    docker_root: Path, tmp_path: Path, expected: dict[str, Any], driver: str, way: Way
) -> None:
    with adopted(docker_root, tmp_path, driver, way) as (store, _):
        for name, described in expected["containers"].items():
            ours = {str(change) for change in store.open(name).changes()}
            missing = _shown(described) - ours
            assert not missing, f"{name}: Docker showed {missing}"
        assert [str(change) for change in store.open("c-running").changes()] == [
            "C /data", "D /data/del", "C /root", "A /root/started", "A /rootdir", "A /rootdir/new",
        ]  # fmt: skip
        assert [str(change) for change in store.open("c-difffail").changes()] == [
            "C /etc", "C /etc/issue", "A /etc/issue/x",
        ]  # fmt: skip
        assert store.open("c-created").changes() == []


@pytest.mark.parametrize(("driver", "way"), WAYS[:2] + WAYS[3:])
def test_hard_links_within_a_layer_stay_hard_links(
    docker_root: Path, tmp_path: Path, expected: dict[str, Any], driver: str, way: Way
) -> None:
    with adopted(docker_root, tmp_path, driver, way) as (store, _):
        groups = 0
        by_chain = {raw.get("chain_id"): raw for raw in expected["layers"].values()}
        for layer in store.layers:
            if layer.kind != "image":
                continue
            described = by_chain[layer.chain_id]
            facts = store.driver.metadata(layer.id)
            ours = trees.tree(Path(facts.get("UpperDir") or facts["Branch"]))
            for entry in described["raw"]:
                names = entry.get("links", ())
                if len(names) > 1 and ".wh." not in entry["path"]:
                    groups += 1
                    assert ours[entry["path"]]["links"] == sorted(names)
        assert groups > 5


def test_files_are_shared_by_hard_links_on_one_file_system(
    docker_root: Path, tmp_path: Path
) -> None:
    busybox = next(docker_root.glob("aufs/diff/*/bin/busybox"))
    with adopted(docker_root, tmp_path, "overlay", Way.LINK) as (store, _):
        base = store.image("fx/base:0").layers[0]
        ours = Path(store.driver.metadata(base.id)["UpperDir"]) / "bin/busybox"
        assert ours.samefile(busybox)
        for box in store.containers:
            with box.mounted() as root:
                (root / "bin/busybox").chmod(0o700)
        started = next(docker_root.glob("aufs/diff/*/root/started"))
        assert started.stat().st_nlink == 1, "what a container wrote must not be shared"
    assert stat.S_IMODE(busybox.stat().st_mode) == 0o755


def test_files_are_copied_from_another_file_system(
    docker_root: Path, tmp_path: Path, ext4: Path
) -> None:
    with adopted(docker_root, ext4, "overlay", Way.LINK) as (store, result):
        assert result.images == 9
        assert store.check(contents=True) == []
        base = store.image("fx/base:0").layers[0]
        ours = Path(store.driver.metadata(base.id)["UpperDir"]) / "bin/busybox"
        assert ours.stat().st_nlink == 1


def test_blocks_are_shared_where_the_file_system_can(tmp_path: Path, xfs: Path) -> None:
    from tests.adopt.conftest import unpack

    support.need("tar", "zstd")
    root = unpack(xfs / "docker")
    with DockerSource(root) as source, Store(xfs / "store", run=tmp_path, driver="vfs") as store:
        plan = store.adopt(source)
        assert (plan.linking, plan.sharing) == (False, True)
        assert plan.run().images == 9


def test_in_place_is_for_the_aufs_driver_alone(docker_root: Path, tmp_path: Path) -> None:
    with (
        DockerSource(docker_root) as source,
        Store(tmp_path / "s", run=tmp_path / "r", driver="overlay") as store,
        pytest.raises(OptionUnsupported, match="--driver aufs"),
    ):
        store.adopt(source, way=Way.IN_PLACE)


def test_what_is_read_in_place_is_written_elsewhere(docker_root: Path, tmp_path: Path) -> None:
    before = trees.tree(docker_root)
    with adopted(docker_root, tmp_path, "aufs", Way.IN_PLACE) as (store, _):
        with store.open("c-stopped").mounted() as root:
            (root / "data/hl/p1").write_text("written here\n")
            (root / "etc/shells").unlink()
        with store.container("fx/base:0") as box:
            (box.root / "bin/busybox").unlink()
            image = box.commit("fx/less:1")
        assert len(image.layers) == 2
        store.open("c-stopped").remove()
        for name in ("c-created", "c-running", "c-difffail"):
            store.open(name).remove()
        for image in list(store.images):
            store.images.remove(image.id, force=True)
        assert list(store.layers) == []
    assert trees.tree(docker_root) == before


def test_an_adopted_container_commits_as_docker_would(docker_root: Path, tmp_path: Path) -> None:
    with adopted(docker_root, tmp_path, "overlay", Way.LINK) as (store, _):
        box = store.open("c-running")
        image = box.commit("fx/more:1")
        assert image.diff_ids[:-1] == store.image("fx/l7:rootdel").diff_ids
        with store.layers.tar(image.layers[-1]) as tar:
            listing = subprocess.run(
                ["tar", "-t"], input=tar.read(), capture_output=True, check=True
            ).stdout.split()
        assert b".dockerenv" not in listing
        assert b"root/started" in listing


def test_a_container_runs_on(docker_root: Path, tmp_path: Path) -> None:
    with adopted(docker_root, tmp_path, "overlay", Way.LINK) as (store, _):
        box = store.open("c-stopped")
        done = box.run(["/bin/sh", "-c", "cat /data/hl/p1; pwd"], capture=True)
        assert b"changed p1" in done.stdout
        assert (box.labels["role"], box.command) == ("stopped", ["sleep", "100000"])
        assert os.fspath(box.created.isoformat()).startswith("2026-11-22T07:16:52")


def test_a_docker_root_that_is_gone_is_named(docker_root: Path, tmp_path: Path) -> None:
    with adopted(docker_root, tmp_path, "aufs", Way.IN_PLACE) as (store, _):
        docker_root.rename(tmp_path / "elsewhere")
        problems = store.check()
        assert len(problems) == 9 + 4 + 4  # image layers, containers' own, and those below
        assert {problem.kind for problem in problems} == {"layer"}
        what = f"its files were in {docker_root}/aufs/diff/"
        assert all(problem.what.startswith(what) for problem in problems)
        assert problems[0].what.endswith(", which is gone or not mounted")
        with pytest.raises(LayerBroken, match=what), store.open("c-stopped").mounted():
            pass
        (tmp_path / "elsewhere").rename(docker_root)
        assert store.check() == []
        docker_root.rename(tmp_path / "elsewhere")
        assert len(store.prune(containers=True, unused=True).images) == 9
        assert list(store.layers) == []


def test_pruning_gives_back_nothing_of_what_docker_keeps(docker_root: Path, tmp_path: Path) -> None:
    before = trees.tree(docker_root)
    with adopted(docker_root, tmp_path, "aufs", Way.IN_PLACE) as (store, _):
        pruned = store.prune(containers=True, unused=True)
        assert (len(pruned.images), len(pruned.containers)) == (9, 4)
        assert pruned.size == 0
    assert trees.tree(docker_root) == before
