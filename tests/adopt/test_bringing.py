"""Bringing over: what is odd, interrupted, too large or there already."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina import Store
from lamina.errors import InvalidName, StoreError
from lamina.oci.docker import ContainerRecord
from lamina.progress import Progress
from lamina.store.adopt import Adopted, DockerSource, Way, bringing
from lamina.store.adopt.room import Room
from tests import support
from tests.adopt import trees
from tests.adopt.conftest import CONTAINERS
from tests.adopt.odd import add_layer_with_whiteout_beside, add_layer_with_whiteout_of_no_name
from tests.adopt.test_source import BASE, BASE_CHAIN, SECOND, SPLIT

pytestmark = pytest.mark.root

RUNNING_UPPER = "59a68945489c6fdec23cee72c448cb413b5b673edcf567bec4c9aacd115b425c"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", run=tmp_path / "run", driver="overlay") as store:
        yield store


def bring(root: Path, store: Store, *names: str, way: Way = Way.LINK) -> Adopted:
    with DockerSource(root) as source:
        return store.adopt(source, names, way=way).run()


# -- choosing, planning


def test_a_container_brings_the_image_that_it_stands_on(docker_root: Path, store: Store) -> None:
    result = bring(docker_root, store, "c-created")
    assert (result.images, result.containers, result.layers) == (1, 1, 1)
    assert store.image("fx/base:0").names == ["fx/base:0"]
    result = bring(docker_root, store, "fx/l2:add", CONTAINERS["c-stopped"][:12])
    assert (result.images, result.containers, result.layers) == (2, 1, 4)


def test_what_is_not_there_is_told(docker_root: Path, store: Store) -> None:
    with pytest.raises(InvalidName, match="no image or container called 'debian'"):
        bring(docker_root, store, "fx/l2:add", "debian")


def test_a_plan_does_nothing(docker_root: Path, store: Store) -> None:
    before = trees.fingerprint(docker_root)
    with DockerSource(docker_root) as source:
        plan = store.adopt(source)
        assert (len(plan.images), len(plan.containers), len(plan.layers)) == (9, 4, 9)
        assert 2_700_000 < plan.size < 2_900_000
        assert plan.need().size < plan.available().size
    assert trees.fingerprint(docker_root) == before
    assert list(store.images) == []
    assert list(store.layers) == []


def test_too_little_room_is_told_before_anything_is_made(
    docker_root: Path, tmp_path: Path, tmpfs_small: Path
) -> None:
    big = docker_root / "aufs/diff" / RUNNING_UPPER / "root/big"
    big.write_bytes(os.urandom(5 << 20))
    with (
        Store(tmpfs_small / "s", run=tmp_path / "r", driver="vfs") as store,
        DockerSource(docker_root) as source,
    ):
        with pytest.raises(
            StoreError, match=r"not enough room .* takes up to [\d,.]+ MB, .*--root"
        ):
            store.adopt(source).run()
        assert list(store.layers) == []


def test_what_comes_by_tar_needs_room_although_the_rest_is_linked(
    docker_root: Path, store: Store
) -> None:
    name = add_layer_with_whiteout_beside(docker_root, f"sha256:{BASE_CHAIN}", BASE)
    with DockerSource(docker_root) as source:
        plan = store.adopt(source, [name])
        assert plan.linking
        least = plan.need().size
    for live in docker_root.glob("aufs/diff/*/etc/both"):
        live.write_bytes(os.urandom(1 << 20))
    with DockerSource(docker_root) as source:
        assert store.adopt(source, [name]).need().size >= least + (1 << 20) - 4096


def test_too_few_files_left_is_told_before_anything_is_made(
    docker_root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DockerSource(docker_root) as source:
        plan = store.adopt(source)
        monkeypatch.setattr(type(plan), "available", lambda self: Room(1 << 40, 100))
        with pytest.raises(StoreError, match="files"):
            plan.run()


def test_progress_ends_with_everything(docker_root: Path, store: Store) -> None:
    seen: list[Progress] = []
    with DockerSource(docker_root) as source:
        store.adopt(source).run(seen.append)
    assert {progress.what for progress in seen} == {f"adopting {docker_root}"}
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total


def test_progress_does_not_stand_still_while_vfs_copies(docker_root: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    with (
        Store(tmp_path / "store", run=tmp_path / "run", driver="vfs") as store,
        DockerSource(docker_root) as source,
    ):
        plan = store.adopt(source)
        assert plan.work > 20 * plan.size, "each layer is a copy of what it stands on"
        result = plan.run(seen.append)
    assert result.size == pytest.approx(plan.size, rel=0.01)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total == plan.work
    steps = [after - before for before, after in itertools.pairwise(done)]
    assert max(steps) < plan.work / 20


# -- again, and after an interruption


def test_a_second_adoption_has_nothing_to_do(docker_root: Path, store: Store) -> None:
    bring(docker_root, store)
    layers = {layer.id for layer in store.layers}
    result = bring(docker_root, store)
    assert (result.images, result.containers, result.layers, result.faults) == (0, 0, 0, [])
    assert {layer.id for layer in store.layers} == layers


def test_a_name_that_was_taken_away_comes_again(docker_root: Path, store: Store) -> None:
    bring(docker_root, store, "fx/base:0")
    store.image("fx/base:0").tag("mine:1")
    store.remove_image("fx/base:0")
    bring(docker_root, store, "fx/base:0")
    assert store.image("mine:1").names == ["fx/base:0", "mine:1"]


@pytest.mark.parametrize("after", range(0, 24, 3))
def test_an_interrupted_adoption_is_continued(
    docker_root: Path, store: Store, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = bringing.Bringing._fill
    count = [0]

    def fill(self: bringing.Bringing, *args: object, **options: object) -> int:
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        return whole(self, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(bringing.Bringing, "_fill", fill)
        if after < 17:
            with pytest.raises(KeyboardInterrupt):
                bring(docker_root, store)
        else:
            bring(docker_root, store)
    done = len(list(store.images))
    layers = {layer.id for layer in store.layers if layer.kind == "image"}
    assert len(layers) == min(after, 9)
    result = bring(docker_root, store)
    assert (result.images, result.layers) == (9 - done, 9 - len(layers))
    assert layers <= {layer.id for layer in store.layers}
    assert (len(list(store.images)), len(list(store.containers))) == (9, 4)
    assert len([layer for layer in store.layers if layer.kind == "image"]) == 9
    assert store.check(contents=True) == []


def test_a_killed_adoption_is_continued(docker_root: Path, tmp_path: Path) -> None:
    where = (tmp_path / "store", tmp_path / "run")
    command: list[str | Path] = [
        sys.executable, "-m", "lamina", "--root", where[0], "--run-root", where[1],
        "--driver", "overlay", "adopt", docker_root, "--bring",
    ]  # fmt: skip
    for moment in (0.2, 0.35, 0.5, 0.7):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
    support.run(*command)
    with Store(where[0], run=where[1], driver="overlay") as store:
        assert (len(list(store.images)), len(list(store.containers))) == (9, 4)
        assert store.check(contents=True) == []


_KILLED = """
import os, signal, sys
from lamina import Store
from lamina.store.adopt import DockerSource, bringing

whole, count = bringing.Bringing._fill, 0

def fill(*args, **options):
    global count
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **options)

bringing.Bringing._fill = fill
with Store(sys.argv[1], run=sys.argv[2], driver="overlay") as store, DockerSource(sys.argv[3]) as s:
    store.adopt(s, ["fx/l7:rootdel"]).run()
"""


@pytest.mark.parametrize("pruned", [False, True])
def test_the_layers_of_an_image_that_was_not_finished_stay_until_they_are_pruned(
    docker_root: Path, tmp_path: Path, pruned: bool
) -> None:
    where = (tmp_path / "store", tmp_path / "run")
    command: list[str | Path] = [sys.executable, "-c", _KILLED, *where, docker_root]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with Store(where[0], run=where[1], driver="overlay") as store:
        assert len(list(store.layers)) == 3
        assert store.check(contents=True) == []
        if pruned:
            assert len(store.prune().layers) == 3
            assert list(store.layers) == []
            assert store.check() == []
        result = bring(docker_root, store, "fx/l7:rootdel")
        chain = len(store.image("fx/l7:rootdel").layers)
        assert (result.images, result.layers) == (1, chain - (0 if pruned else 3))
        assert store.check(contents=True) == []


def test_an_adoption_is_overtaken_by_another(
    docker_root: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    remark = bringing.Bringing._remark
    overtaken: list[Adopted] = []

    def overtake(self: bringing.Bringing, box: ContainerRecord) -> None:
        monkeypatch.undo()  # the other one goes on to its end
        with Store(tmp_path / "store", run=tmp_path / "run", driver="overlay") as other:
            overtaken.append(bring(docker_root, other))
        remark(self, box)

    monkeypatch.setattr(bringing.Bringing, "_remark", overtake)
    result = bring(docker_root, store)
    assert [(one.images, one.containers) for one in (*overtaken, result)] == [(0, 4), (9, 0)]
    assert result.faults == []
    assert len(list(store.containers)) == 4
    assert store.check(contents=True) == []


# -- damage and odd names


def test_a_damaged_layer_leaves_out_what_stands_on_it_and_no_more(
    docker_root: Path, store: Store
) -> None:
    (docker_root / "aufs/diff" / SECOND / "opt/app/etc/conf").write_text("CONF\n")
    result = bring(docker_root, store)
    assert (result.images, result.containers) == (1, 1)
    assert {fault.id for fault in result.faults} >= {"fx/l2:add", "fx/l7:rootdel", "c-stopped"}
    assert all("conf' is not what it was" in fault.what for fault in result.faults)
    assert store.check(contents=True) == []


@pytest.mark.parametrize("verify", [True, False])
def test_a_layer_without_its_tar_split_record_is_named_and_the_rest_comes(
    docker_root: Path, store: Store, verify: bool
) -> None:
    (docker_root / SPLIT).unlink()
    with DockerSource(docker_root) as source:
        result = store.adopt(source, verify=verify).run()
    assert (result.images, result.containers) == (1, 1)
    assert all("tar-split.json.gz: No such file" in fault.what for fault in result.faults)
    assert store.check(contents=True) == []


def test_images_come_without_names_where_those_can_not_be_read(
    docker_root: Path, store: Store
) -> None:
    (docker_root / "image/aufs/repositories.json").unlink()
    result = bring(docker_root, store, way=Way.COPY)
    assert [fault.id for fault in result.faults] == ["repositories.json"]
    assert result.containers == 4


def test_a_name_of_another_image_is_not_taken(docker_root: Path, store: Store) -> None:
    with store.container(docker_root) as box:
        mine = box.commit("fx/base:0")
    store.container(docker_root, name="c-stopped", keep=True)
    result = bring(docker_root, store)
    assert store.image("fx/base:0").id == mine.id
    assert [fault.id for fault in result.faults] == ["fx/base:0", "c-stopped"]
    assert store.open(CONTAINERS["c-stopped"]).name == f"docker-{CONTAINERS['c-stopped'][:12]}"


def _odd(upper: Path) -> None:
    for name in (".wh.", ".wh..", ".wh...", ".wh..wh.x"):
        (upper / name).write_text("")
    (upper / ".wh.bin").mkdir()
    (upper / ".wh.bin/inner").write_text("")
    (upper / ".wh.sbin").symlink_to("nowhere")
    (upper / "etc").mkdir()
    (upper / "etc/.wh.both").write_text("")
    (upper / "etc/both").write_text("live\n")
    (upper / "etc/zero").touch()
    (upper / "etc/zero").unlink()
    os.mknod(upper / "etc/zero", 0o20600, 0)


@pytest.mark.parametrize("driver", ["overlay", "vfs", "aufs"])
def test_odd_names_in_a_container_are_left_out_and_named(
    docker_root: Path, tmp_path: Path, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    if driver == "aufs":
        support.need("fuse-overlayfs")
    _odd(docker_root / "aufs/diff" / RUNNING_UPPER)
    before = trees.fingerprint(docker_root)
    with Store(tmp_path / "s", run=tmp_path / "r", driver=driver) as store:
        result = bring(docker_root, store)
        assert trees.fingerprint(docker_root) == before
        said = {fault.what.split(":")[0] for fault in result.faults}
        assert said == {
            ".wh.", ".wh..", ".wh...", ".wh..wh.x", ".wh.bin", ".wh.sbin", "etc/.wh.both",
            "etc/zero",
        }  # fmt: skip
        with store.open("c-running").mounted() as root:
            assert not {"bin", "sbin"}.intersection(os.listdir(root))
            assert not (root / "etc/both").exists()
            assert not [name for name in os.listdir(root) if name.startswith(".wh.")]
            assert (root / "root/started").read_text() == "started\n"


@pytest.mark.parametrize("way", [Way.LINK, Way.COPY, Way.IN_PLACE])
def test_an_image_with_a_whiteout_beside_a_live_file_gives_back_its_tar(
    docker_root: Path, tmp_path: Path, way: Way
) -> None:
    driver = "aufs" if way is Way.IN_PLACE else "overlay"
    if driver == "aufs":
        support.need("fuse-overlayfs")
    name = add_layer_with_whiteout_beside(docker_root, f"sha256:{BASE_CHAIN}", BASE)
    with Store(tmp_path / "s", run=tmp_path / "r", driver=driver) as store:
        bring(docker_root, store, name, way=way)
        assert store.check(contents=True) == []
        if way is not Way.IN_PLACE:  # where AUFS hides it, as it always did
            with store.container(name) as box:
                assert (box.root / "etc/both").read_text() == "live\n"


def test_an_image_whose_tar_no_driver_takes_is_named_and_the_rest_comes(
    docker_root: Path, store: Store
) -> None:
    name = add_layer_with_whiteout_of_no_name(docker_root, f"sha256:{BASE_CHAIN}", BASE)
    result = bring(docker_root, store)
    assert (result.images, result.containers) == (9, 4)
    layer, image = result.faults
    assert (layer.kind, image.kind, image.id, image.cause) == ("layer", "image", name, layer.id)
    assert "a whiteout that names no entry" in layer.what
    assert result.left_out.images == [name]
    assert store.check(contents=True) == []


def test_whiteouts_of_nothing_in_an_image_layer_are_left_out(
    docker_root: Path, store: Store
) -> None:
    for name in (".wh.", ".wh..", ".wh...", ".wh..wh.x"):
        (docker_root / "aufs/diff" / SECOND / "opt" / name).write_text("")
    bring(docker_root, store)
    assert store.check(contents=True) == []
    layer = store.image("fx/l2:add").layers[-1]
    ours = Path(store.driver.metadata(layer.id)["UpperDir"])
    assert not [name for name in os.listdir(ours / "opt") if name.startswith(".wh.")]


def test_what_overlayfs_would_take_for_its_own_marks_stays_out(
    docker_root: Path, store: Store
) -> None:
    upper = docker_root / "aufs/diff" / SECOND
    os.setxattr(upper / "opt", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "opt/app/etc/conf", "trusted.overlay.redirect", b"/etc/shadow")
    bring(docker_root, store)
    assert store.check(contents=True) == []
    layer = store.image("fx/l2:add").layers[-1]
    ours = Path(store.driver.metadata(layer.id)["UpperDir"])
    for path in (ours / "opt", ours / "opt/app/etc/conf"):
        assert not [name for name in os.listxattr(path) if name.startswith("trusted.overlay")]
    assert os.getxattr(upper / "opt", "trusted.overlay.opaque") == b"y"


def test_without_verification_damage_is_found_later(docker_root: Path, store: Store) -> None:
    (docker_root / "aufs/diff" / SECOND / "opt/app/etc/conf").write_text("CONF\n")
    with DockerSource(docker_root) as source:
        assert store.adopt(source, verify=False).run().images == 9
    (problem,) = store.check(contents=True)
    assert "conf" in problem.what
