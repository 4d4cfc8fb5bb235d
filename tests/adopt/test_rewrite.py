"""A Docker root of AUFS, rewritten where it lies, and a dockerd that goes on with it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import PermissionRequired, StoreError
from lamina.progress import Progress
from lamina.store.adopt import DockerSource
from lamina.store.rewrite import (
    DamageFound,
    LeftOut,
    OnlyThere,
    Rewrite,
    Rewritten,
    delete_source,
    only_in_old,
    rewriting,
)
from lamina.store.rewrite.place import Place
from tests import daemons, support, users
from tests.adopt import trees
from tests.adopt.conftest import CONTAINERS
from tests.adopt.odd import add_layer_with_whiteout_beside, add_layer_with_whiteout_of_no_name
from tests.adopt.test_source import BASE, BASE_CHAIN, SECOND, SECOND_CHAIN, SPLIT

pytestmark = pytest.mark.root


def rewrite(root: Path, *, leave_out: bool = False) -> Rewritten:
    with DockerSource(root, alone=True) as source:
        return Rewrite(source, leave_out_damaged=leave_out).run()


def merged(root: Path, id: str, target: Path) -> dict[str, trees.Entry]:
    """What overlayfs shows of a layer of Docker's overlay2, mounted as Docker does."""
    home = root / "overlay2"
    target.mkdir(exist_ok=True)
    lower = (home / id / "lower").read_text() if (home / id / "lower").exists() else ""
    layers = ":".join(filter(None, [f"{id}/diff", lower]))
    if not lower:
        return trees.tree(home / id / "diff")
    support.run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={layers}", target, cwd=home)
    try:
        return trees.tree(target)
    finally:
        support.run("umount", target)


def test_overlay2_shows_all_images_and_containers_as_aufs_did(
    docker_root: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    result = rewrite(docker_root)
    assert (result.layers, result.images, result.containers) == (9, 13, 4)
    assert result.faults == []
    for name, described in {**expected["images"], **expected["containers"]}.items():
        found = merged(docker_root, described["layers"][0], tmp_path / "merged")
        wrong = trees.differences(found, trees.expected(described))
        assert not wrong, f"{name}: " + "\n".join(wrong[:20])


def test_a_dockerd_goes_on_with_the_same_images_and_containers(
    docker_root: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    daemons.need()
    rewrite(docker_root)
    with daemons.dockerd(docker_root) as docker:
        assert docker.lines("images", "--format", "{{.Repository}}:{{.Tag}}") == sorted(
            expected["images"]
        )
        assert docker.lines("ps", "-a", "--format", "{{.Names}}") == sorted(CONTAINERS)
        for name, described in expected["images"].items():
            (known,) = docker.inspect(name)
            assert known["Id"] == described["id"]
            assert known["RootFS"]["Layers"] == described["diff_ids"]
            assert known["GraphDriver"]["Name"] == "overlay2"
        for name, id in CONTAINERS.items():
            (known,) = docker.inspect(name)
            assert (known["Id"], known["Driver"]) == (id, "overlay2")
        assert docker.lines("diff", "c-running") == [
            "A /root/started", "A /rootdir", "A /rootdir/new",
            "C /data", "C /root", "D /data/del",
        ]  # fmt: skip
        assert docker.lines("diff", "c-difffail") == ["A /etc/issue/x", "C /etc", "C /etc/issue"]
        shown = docker("run", "--rm", "--network", "none", "fx/l2:add", "cat", "/opt/app/etc/conf")
        assert shown == "conf\n"
        docker("start", "c-stopped")
        assert "changed p1" in docker("exec", "c-stopped", "cat", "/data/hl/p1")
        docker("exec", "c-stopped", "sh", "-c", "echo more >> /etc/passwd; rm -r /data/many")
        assert "D /data/many" in docker.lines("diff", "c-stopped")
        docker("kill", "c-stopped")
        docker("commit", "c-stopped", "fx/new:1")
        _check_saved(docker, tmp_path / "saved.tar", expected)
        docker("rm", *CONTAINERS)
        docker("rmi", "fx/l7:rootdel")


def _check_saved(docker: daemons.Docker, path: Path, expected: dict[str, Any]) -> None:
    """That what ``docker save`` writes has the layers that the images had on AUFS."""
    docker("save", "-o", path, *expected["images"])
    with tarfile.open(path) as saved:

        def read(name: str) -> bytes:
            member = saved.extractfile(name)
            assert member is not None
            return member.read()

        for image in json.loads(read("manifest.json")):
            described = expected["images"][image["RepoTags"][0]]
            diff_ids = [
                f"sha256:{hashlib.sha256(read(layer)).hexdigest()}" for layer in image["Layers"]
            ]
            assert diff_ids == described["diff_ids"], image["RepoTags"]


def test_what_docker_writes_does_not_reach_the_old_tree(docker_root: Path, tmp_path: Path) -> None:
    daemons.need()
    before = trees.tree(docker_root / "aufs")
    rewrite(docker_root)
    with daemons.dockerd(docker_root) as docker:
        docker("start", "c-stopped")
        docker("exec", "c-stopped", "sh", "-c", "echo x > /data/hl/p1; chmod 700 /bin/busybox")
        docker("kill", "c-stopped")
    after = trees.tree(docker_root / "aufs")
    assert trees.differences(after, before) == []


def test_the_old_tree_stays_as_it_was(docker_root: Path) -> None:
    before = {part: trees.fingerprint(docker_root / part) for part in ("aufs", "image/aufs")}
    rewrite(docker_root)
    assert {part: trees.fingerprint(docker_root / part) for part in before} == before
    box = CONTAINERS["c-stopped"]
    saved = docker_root / "lamina-rewrite/containers" / box / "config.v2.json"
    now = docker_root / "containers" / box / "config.v2.json"
    one, other = json.loads(saved.read_text()), json.loads(now.read_text())
    assert (one.pop("Driver"), other.pop("Driver")) == ("aufs", "overlay2")
    assert one == other
    assert now.stat().st_mode == saved.stat().st_mode


def test_progress_counts_bytes_from_the_first_to_the_last(docker_root: Path) -> None:
    seen: list[Progress] = []
    with DockerSource(docker_root, alone=True) as source:
        Rewrite(source).run(seen.append)
    assert {(progress.what, progress.unit) for progress in seen} == {
        (f"rewriting {docker_root}", "bytes")
    }
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total
    assert len(set(done)) > 100


def test_it_is_done_once(docker_root: Path) -> None:
    assert not rewrite(docker_root).before
    state = trees.fingerprint(docker_root / "overlay2")
    assert rewrite(docker_root).before
    assert trees.fingerprint(docker_root / "overlay2") == state


def test_the_source_is_deleted_by_request_and_only_then(docker_root: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not rewritten"):
        delete_source(docker_root)
    rewrite(docker_root)
    busybox = next(docker_root.glob("overlay2/*/diff/bin/busybox"))
    assert busybox.stat().st_nlink == 2
    delete_source(docker_root)
    assert sorted(path.name for path in docker_root.iterdir() if "lamina" in path.name) == []
    assert not (docker_root / "aufs").exists()
    assert not (docker_root / "image/aufs").exists()
    assert busybox.stat().st_nlink == 1
    with daemons.dockerd(docker_root) as docker:
        assert docker("run", "--rm", "--network", "none", "fx/base:0", "echo", "on") == "on\n"


def test_an_old_tree_that_is_a_mount_is_not_half_deleted(docker_root: Path) -> None:
    rewrite(docker_root)
    before = trees.tree(docker_root)
    aufs = docker_root / "aufs"
    support.run("mount", "--bind", aufs, aufs)
    try:
        with pytest.raises(StoreError, match="aufs is a mount: unmount it first"):
            delete_source(docker_root)
    finally:
        support.run("umount", aufs)
    assert trees.tree(docker_root) == before
    delete_source(docker_root)


def test_what_only_the_old_tree_has_keeps_it(docker_root: Path) -> None:
    box = docker_root / "containers" / CONTAINERS["c-stopped"]
    config = json.loads((box / "config.v2.json").read_text())
    (box / "config.v2.json").write_text("{")
    with pytest.raises(DamageFound, match=f"would be left out: container {box.name[:12]}$"):
        rewrite(docker_root)
    rewrite(docker_root, leave_out=True)
    assert only_in_old(docker_root) == LeftOut(containers=[box.name[:12]])
    config["Name"] = "/newer"
    newer = box.with_name("a" * 64)
    newer.mkdir()
    (newer / "config.v2.json").write_text(json.dumps(config))
    images = docker_root / "image/aufs/imagedb/content/sha256"
    (images / ("b" * 64)).write_text("{}")
    message = f"alone has image {'b' * 12} and containers {box.name[:12]}, newer$"
    with pytest.raises(OnlyThere, match=message):
        delete_source(docker_root)
    assert (docker_root / "image/aufs").exists()
    delete_source(docker_root, force=True)
    assert not (docker_root / "aufs").exists()


def test_a_damaged_root_is_not_rewritten_unless_that_is_agreed_to(docker_root: Path) -> None:
    shutil.rmtree(docker_root / "aufs/diff" / SECOND)
    before = trees.tree(docker_root)
    with pytest.raises(DamageFound, match="containers c-difffail, c-running, c-stopped") as raised:
        rewrite(docker_root)
    assert "fx/l2:add, " in str(raised.value)
    assert trees.tree(docker_root) == before
    left_out = rewrite(docker_root, leave_out=True).left_out
    assert len([name for name in left_out.images if "/" in name]) == 8
    with pytest.raises(OnlyThere, match=r"alone has images .*fx/l2:add, .* and containers"):
        delete_source(docker_root)
    assert (docker_root / "aufs").exists()


def test_what_was_left_out_is_still_known_after_an_interruption(
    docker_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docker_root / "aufs/diff" / SECOND / "opt/app/etc/conf").write_text("CONF\n")
    with monkeypatch.context() as patch:
        patch.setattr(Place, "finish", _failing_after(Place.finish, 0))
        with pytest.raises(OSError, match="as if"):
            rewrite(docker_root, leave_out=True)
    result = rewrite(docker_root)
    assert result.containers == 1
    assert result.left_out.containers == ["c-difffail", "c-running", "c-stopped"]
    assert only_in_old(docker_root) == result.left_out


def test_a_running_dockerd_keeps_everybody_out(docker_root: Path) -> None:
    daemons.need()
    rewrite(docker_root)
    with daemons.dockerd(docker_root):
        for alone in (False, True):
            with pytest.raises(StoreError, match="in use by a running dockerd"):
                DockerSource(docker_root, alone=alone)
        with pytest.raises(StoreError, match="in use by a running dockerd"):
            delete_source(docker_root)
    assert (docker_root / "aufs").exists()


# -- crashes

STEPS: list[tuple[Any, str]] = [
    (rewriting, "transplant"),
    (os, "symlink"),
    (rewriting, "copy_tree"),
    (Place, "commit_tree"),
    (os, "rename"),
    (rewriting, "replace_file"),
    (Place, "finish"),
]


@pytest.mark.parametrize("step", range(len(STEPS)), ids=[name for _, name in STEPS])
def test_an_interrupted_rewriting_is_finished_by_the_next(
    docker_root: Path,
    tmp_path: Path,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    place, name = STEPS[step]
    whole = getattr(place, name)
    stops = 0
    for allowed in (*range(6), 12, 24, 30):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, _failing_after(whole, allowed))
            try:
                rewrite(docker_root)
            except OSError as error:
                assert error.errno == errno.EIO
                stops += 1
                continue
        break
    assert stops, "it was never interrupted"
    assert rewrite(docker_root).faults == []
    for name, described in expected["containers"].items():
        found = merged(docker_root, described["layers"][0], tmp_path / "merged")
        assert not trees.differences(found, trees.expected(described)), name
    assert len(list((docker_root / "overlay2/l").iterdir())) == 17
    for id in CONTAINERS.values():
        config = json.loads((docker_root / "containers" / id / "config.v2.json").read_text())
        assert config["Driver"] == "overlay2"


def _failing_after(call: Callable[..., Any], allowed: int) -> Callable[..., Any]:
    left = [allowed]
    thread = threading.get_ident()

    def failing(*args: Any, **options: Any) -> Any:
        if threading.get_ident() == thread:
            if not left[0]:
                raise OSError(errno.EIO, "as if the machine went down")
            left[0] -= 1
        return call(*args, **options)

    return failing


def test_what_was_written_and_removed_since_an_interruption_is_seen(
    docker_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Place, "commit_tree", _failing_after(Place.commit_tree, 0))
        with pytest.raises(OSError, match="as if"):
            rewrite(docker_root)
    mounts = docker_root / "image/aufs/layerdb/mounts"
    upper = (mounts / CONTAINERS["c-stopped"] / "mount-id").read_text()
    (docker_root / "aufs/diff" / upper / "since").write_text("since\n")
    gone = (mounts / CONTAINERS["c-created"] / "mount-id").read_text()
    for part in ("containers", "image/aufs/layerdb/mounts"):
        shutil.rmtree(docker_root / part / CONTAINERS["c-created"])
    for name in (gone, f"{gone}-init"):
        (docker_root / "aufs/layers" / name).unlink()
        shutil.rmtree(docker_root / "aufs/diff" / name)
    assert rewrite(docker_root).containers == 3
    assert (docker_root / "overlay2" / upper / "diff/since").read_text() == "since\n"
    assert not list((docker_root / "overlay2").glob(f"{gone}*"))
    assert all(link.exists() for link in (docker_root / "overlay2/l").iterdir())


def test_what_docker_made_in_a_rewriting_that_stopped_half_way_is_not_moved_away(
    docker_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def stop(old: Path, new: Path) -> None:
        if new == docker_root / "image/overlay2":
            raise OSError(errno.EIO, "as if the machine went down")
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stop)
        with pytest.raises(OSError, match="as if"):
            rewrite(docker_root)
    pulled = docker_root / "image/overlay2/layerdb/sha256" / ("a" * 64)
    pulled.mkdir(parents=True)
    with pytest.raises(StoreError, match="mix"):
        rewrite(docker_root)
    assert pulled.exists()
    pulled.rmdir()
    assert rewrite(docker_root).containers == 4


# -- what stands in the way


def test_a_root_that_has_layers_of_overlay2_is_left_alone(docker_root: Path) -> None:
    (docker_root / "overlay2" / ("a" * 64)).mkdir(parents=True)
    before = trees.tree(docker_root)
    with DockerSource(docker_root, alone=True) as source, pytest.raises(StoreError, match="mix"):
        Rewrite(source)
    assert trees.tree(docker_root) == before


def test_an_overlay2_without_layers_gives_way(docker_root: Path) -> None:
    (docker_root / "overlay2/l").mkdir(parents=True)
    (docker_root / "image/overlay2/layerdb/sha256").mkdir(parents=True)
    assert rewrite(docker_root).faults == []


def test_what_is_damaged_is_left_out_and_named(docker_root: Path, tmp_path: Path) -> None:
    (docker_root / "aufs/diff" / SECOND / "opt/app/etc/conf").write_text("CONF\n")
    result = rewrite(docker_root, leave_out=True)
    assert [fault.id for fault in result.faults] == [f"sha256:{SECOND_CHAIN}"]
    assert (result.layers, result.images, result.containers) == (1, 1, 1)
    assert (docker_root / "overlay2" / BASE).is_dir()
    assert not (docker_root / "overlay2" / SECOND).exists()
    with daemons.dockerd(docker_root) as docker:
        assert docker.lines("ps", "-a", "--format", "{{.Names}}") == ["c-created"]
        assert docker("run", "--rm", "--network", "none", "fx/base:0", "echo", "on") == "on\n"


def test_a_layer_without_its_tar_split_record_is_left_out_and_named(docker_root: Path) -> None:
    (docker_root / SPLIT).unlink()
    result = rewrite(docker_root, leave_out=True)
    assert [fault.id for fault in result.faults] == [f"sha256:{SECOND_CHAIN}"]
    assert (result.layers, result.images, result.containers) == (1, 1, 1)


def test_a_layer_of_none_that_stands_on_a_damaged_one_is_left_out(docker_root: Path) -> None:
    names = [letter * 64 for letter in "abcd"]
    listed = {"a": "bc", "b": "c", "c": "d", "d": ""}  # b knows nothing of d
    for name in names:
        (docker_root / "aufs/diff" / name).mkdir()
        below = [letter * 64 + "\n" for letter in listed[name[0]]]
        (docker_root / "aufs/layers" / name).write_text("".join(below))
    result = rewrite(docker_root)
    assert [fault.id for fault in result.faults] == ["b" * 64]
    left = {path.name for path in (docker_root / "overlay2").iterdir()}.intersection(names)
    assert left == {"c" * 64, "d" * 64}


@pytest.mark.parametrize("content", [None, b"{", "link"])
def test_names_that_can_not_be_read_are_left_out_and_named(
    docker_root: Path, content: bytes | str | None
) -> None:
    path = docker_root / "image/aufs/repositories.json"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.symlink_to("/etc/passwd")
    with pytest.raises(DamageFound, match="the names of all images"):
        rewrite(docker_root)
    result = rewrite(docker_root, leave_out=True)
    assert [fault.id for fault in result.faults] == ["repositories.json"]
    assert (result.layers, result.images, result.containers) == (9, 13, 4)
    assert not (docker_root / "image/overlay2/repositories.json").exists()
    with daemons.dockerd(docker_root) as docker:
        assert len(docker.lines("images", "-aq")) == 13


def test_a_link_in_image_aufs_leads_nowhere_else(docker_root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/secret").write_text("secret\n")
    shutil.rmtree(docker_root / "image/aufs/distribution")
    (docker_root / "image/aufs/distribution").symlink_to(tmp_path / "mine")
    assert rewrite(docker_root).faults == []
    assert not list((docker_root / "image/overlay2").rglob("secret"))


def _rewrite_as_a_user(root: Path) -> str:
    try:
        rewrite(root)
    except PermissionRequired as error:
        return str(error)
    return "rewritten"


def test_an_ordinary_user_is_told_that_it_takes_root(
    ordinary_user: users.User, docker_root: Path, tmp_path: Path
) -> None:
    for path in (*tmp_path.parents[:2], tmp_path):
        path.chmod(0o755)
    uid, gid = ordinary_user.home.stat().st_uid, ordinary_user.home.stat().st_gid
    support.run("chown", "-hR", f"{uid}:{gid}", docker_root)
    assert "takes root: use sudo" in ordinary_user.call(_rewrite_as_a_user, docker_root)
    assert not (docker_root / "lamina-rewrite").exists()


def test_too_little_room_is_told_before_anything_is_made(
    docker_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rewrite, "available", lambda self: 1_000_000)
    with pytest.raises(StoreError, match="not enough room"):
        rewrite(docker_root)
    assert not (docker_root / "overlay2").exists()
    assert not (docker_root / "lamina-rewrite/overlay2").exists()


def test_a_layer_whose_tar_no_driver_takes_is_left_out_and_named(docker_root: Path) -> None:
    add_layer_with_whiteout_of_no_name(docker_root, f"sha256:{BASE_CHAIN}", BASE)
    with pytest.raises(DamageFound, match="would be left out: image "):
        rewrite(docker_root)
    result = rewrite(docker_root, leave_out=True)
    assert (result.layers, result.images, result.containers) == (9, 13, 4)
    (fault,) = result.faults
    assert "a whiteout that names no entry" in fault.what
    assert not list((docker_root / "overlay2").glob("*-making"))


def test_where_nothing_can_be_linked_there_must_be_room_for_copies(docker_root: Path) -> None:
    with DockerSource(docker_root, alone=True) as source:
        least = Rewrite(source).need()
    aufs = docker_root / "aufs"
    support.run("mount", "--bind", aufs, aufs)  # as Docker's driver does, and a crash leaves it
    try:
        with DockerSource(docker_root, alone=True) as source:
            assert Rewrite(source).need() > least + 2_000_000
            result = Rewrite(source).run()
        assert (result.layers, result.faults) == (9, [])
        assert result.copied > 2_000_000
    finally:
        support.run("umount", aufs)


def test_a_layer_with_a_whiteout_beside_a_live_file_still_gives_back_its_tar(
    docker_root: Path, tmp_path: Path
) -> None:
    name = add_layer_with_whiteout_beside(docker_root, f"sha256:{BASE_CHAIN}", BASE)
    rewrite(docker_root)
    with daemons.dockerd(docker_root) as docker:
        docker("save", "-o", tmp_path / "saved.tar", name)
        shown = docker("run", "--rm", "--network", "none", name, "cat", "/etc/both")
    assert shown == "live\n"
