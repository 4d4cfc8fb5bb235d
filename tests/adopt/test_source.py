"""Docker roots that are damaged, hostile or in use: what is wrong is named, and nothing changes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina import Store
from lamina.errors import PermissionRequired, StoreError
from lamina.oci.docker import Fault
from lamina.store.adopt import DockerSource, verify_all
from tests import support, users
from tests.adopt import trees
from tests.adopt.conftest import CONTAINERS

pytestmark = pytest.mark.root

BASE = "17d11ee0ac41a7e06b50bb419dd21b175e6fc7c9c30bf17ceaaeb56f5caa6a3e"
BASE_CHAIN = "75466f372e44dbdeb9433966724698b4e78118e3cca174061c3ee967264d0933"
SECOND = "372aab4cf86f547c9100a4a9a76c61d82add06ffd87b61b8453fe5ad9e5a9b4d"
SECOND_CHAIN = "3611d142b5d8d309c83647d46ea4a18c23d5f6991444b41c3d8ce0324af260c9"
SPLIT = f"image/aufs/layerdb/sha256/{SECOND_CHAIN}/tar-split.json.gz"
TOP = "855561dbc74e489a421a061818b2704798fb2a6c31a18851b2c6f3a25f1cdbff"
IMAGE = "e5c56f772544baa90663808caa33f51635751e3936ddce4e4623efd631acdd16"


def _faults(root: Path) -> list[Fault]:
    with DockerSource(root) as source:
        return source.faults


def test_images_and_containers_are_listed_with_their_names(docker_root: Path) -> None:
    with DockerSource(docker_root) as source:
        shown = source.catalog.shown()
        assert [image.names for image in shown][:3] == [
            ("fx/base:0",),
            ("fx/l2:add",),
            ("fx/l3:names",),
        ]
        assert len(shown) == 9
        assert len(source.catalog.images) == 13, "those that images were built on are there too"
        found = {box.name: box.id for box in source.catalog.containers.values()}
        assert found == CONTAINERS
        assert source.faults == []
        assert verify_all(source) == []


def test_verification_names_the_layer_and_the_file_that_changed(docker_root: Path) -> None:
    path = docker_root / "aufs/diff" / BASE / "bin/busybox"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with DockerSource(docker_root) as source:
        (fault,) = verify_all(source)
    assert (fault.kind, fault.id) == ("layer", f"sha256:{BASE_CHAIN}")
    assert "bin/busybox' is not what it was" in fault.what


def test_verification_names_a_file_that_is_missing(docker_root: Path) -> None:
    (docker_root / "aufs/diff" / BASE / "bin/busybox").unlink()
    with DockerSource(docker_root) as source:
        (fault,) = verify_all(source)
    assert "bin/busybox' is missing" in fault.what


def test_verification_follows_no_link_in_place_of_a_file(docker_root: Path) -> None:
    path = docker_root / "aufs/diff" / BASE / "bin/busybox"
    path.unlink()
    path.symlink_to("/bin/sh")
    with DockerSource(docker_root) as source:
        (fault,) = verify_all(source)
    assert "bin/busybox' is missing" in fault.what


def test_verification_names_a_damaged_tar_split_record(docker_root: Path) -> None:
    path = docker_root / SPLIT
    path.write_bytes(path.read_bytes()[:200])
    with DockerSource(docker_root) as source:
        (fault,) = verify_all(source)
    assert fault.id == f"sha256:{SECOND_CHAIN}"


# -- layers that do not add up


def _layers(root: Path, id: str) -> Path:
    return root / "aufs/layers" / id


def _missing(root: Path) -> None:
    _layers(root, SECOND).write_text("0" * 64 + "\n")


def _itself(root: Path) -> None:
    _layers(root, SECOND).write_text(f"{SECOND}\n")


def _circle(root: Path) -> None:
    _layers(root, BASE).write_text(f"{SECOND}\n{BASE}\n")


def _no_layers_file(root: Path) -> None:
    _layers(root, SECOND).unlink()


def _no_diff(root: Path) -> None:
    shutil.rmtree(root / "aufs/diff" / SECOND)


def _a_link_for_a_diff(root: Path) -> None:
    _no_diff(root)
    (root / "aufs/diff" / SECOND).symlink_to("/etc")


def _a_fifo_for_layers(root: Path) -> None:
    _layers(root, SECOND).unlink()
    os.mkfifo(_layers(root, SECOND))


def _a_path_for_an_id(root: Path) -> None:
    _layers(root, SECOND).write_text("../../../etc\n")


def _bytes_for_an_id(root: Path) -> None:
    _layers(root, SECOND).write_bytes(b"\xff\xfe\n")


def _another_parent(root: Path) -> None:
    _layers(root, SECOND).write_text(f"{TOP}\n")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_missing, "names " + "0" * 64 + ", which is missing"),
        (_itself, "goes round in a circle"),
        (_circle, "goes round in a circle"),
        (_no_layers_file, f"aufs/layers/{SECOND} is missing"),
        (_no_diff, f"aufs/diff/{SECOND} is missing"),
        (_a_link_for_a_diff, f"aufs/diff/{SECOND} is missing"),
        (_a_fifo_for_layers, "not a regular file"),
        (_a_path_for_an_id, "which is not an id"),
        (_bytes_for_an_id, "can't decode"),
        (_another_parent, "do not agree"),
    ],
)
def test_layers_that_do_not_add_up_are_named_and_the_rest_comes(
    docker_root: Path, tmp_path: Path, harm: Callable[[Path], None], said: str
) -> None:
    harm(docker_root)
    before = trees.fingerprint(docker_root)
    with DockerSource(docker_root) as source:
        assert any(said in fault.what for fault in source.faults), source.faults
        with Store(tmp_path / "s", run=tmp_path / "r", driver="overlay") as store:
            result = store.adopt(source).run()
            assert trees.fingerprint(docker_root) == before
            names = {name for image in store.images for name in image.names}
            assert store.check(contents=True) == []
    assert "fx/l2:add" not in names
    assert names == ({"fx/base:0"} if harm is not _circle else set())
    assert {fault.id for fault in result.faults} >= {"fx/l2:add", "c-stopped"}


def test_a_diff_directory_of_no_layer_is_named(docker_root: Path) -> None:
    (docker_root / "aufs/diff" / ("a" * 64)).mkdir()
    (docker_root / "aufs/layers" / ("b" * 64)).write_text("")
    assert {str(fault) for fault in _faults(docker_root)} == {
        f"branch {'a' * 64}: aufs/layers/{'a' * 64} is missing",
        f"branch {'b' * 64}: aufs/diff/{'b' * 64} is missing",
    }


# -- documents that are damaged


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        (f"image/aufs/layerdb/sha256/{SECOND_CHAIN}/diff", b"sha256:" + b"0" * 64, "ChainID"),
        (f"image/aufs/layerdb/sha256/{SECOND_CHAIN}/diff", b"../../x", "not a sha256"),
        (f"image/aufs/layerdb/sha256/{SECOND_CHAIN}/cache-id", b"../../../../etc", "cache-id"),
        (f"image/aufs/layerdb/sha256/{SECOND_CHAIN}/cache-id", None, "cache-id is missing"),
        (f"image/aufs/layerdb/sha256/{SECOND_CHAIN}/size", b"many", "invalid literal"),
        (f"image/aufs/imagedb/content/sha256/{IMAGE}", b"{}", "digest"),
        (f"image/aufs/imagedb/content/sha256/{IMAGE}", b"[" * 100_000, "digest"),
        (f"image/aufs/layerdb/sha256/{SECOND_CHAIN}/size", b"-1", "size"),
        (f"image/aufs/layerdb/sha256/{SECOND_CHAIN}/size", b"9" * 400, "size"),
        ("image/aufs/repositories.json", b"\xff", "repositories.json"),
        ("image/aufs/repositories.json", b'{"Repositories": 5}', "repositories.json"),
        (f"containers/{CONTAINERS['c-stopped']}/config.v2.json", b"{", CONTAINERS["c-stopped"]),
        (f"containers/{CONTAINERS['c-stopped']}/config.v2.json", None, "missing"),
        (f"containers/{CONTAINERS['c-stopped']}/config.v2.json", b'{"Driver":"zfs"}', "zfs"),
        (
            f"image/aufs/layerdb/mounts/{CONTAINERS['c-stopped']}/parent",
            f"sha256:{BASE_CHAIN}".encode(),
            "does not stand on the layers of its image",
        ),
        (
            f"image/aufs/layerdb/mounts/{CONTAINERS['c-stopped']}/mount-id",
            b"../../../../etc",
            "not an id",
        ),
    ],
)
def test_documents_that_are_damaged_are_named_and_the_rest_comes(
    docker_root: Path, tmp_path: Path, path: str, content: bytes | None, said: str
) -> None:
    if content is None:
        (docker_root / path).unlink()
    else:
        (docker_root / path).write_bytes(content)
    with (
        DockerSource(docker_root) as source,
        Store(tmp_path / "s", run=tmp_path / "r", driver="overlay") as store,
    ):
        assert any(said in str(fault) for fault in source.faults)
        assert store.adopt(source).run().images > 0
        assert store.check() == []


@pytest.mark.parametrize("code", [1 << 40, 1 << 63, 1 << 70])
def test_an_exit_status_that_is_none_is_named_and_the_rest_comes(
    docker_root: Path, tmp_path: Path, code: int
) -> None:
    path = docker_root / f"containers/{CONTAINERS['c-stopped']}/config.v2.json"
    config = json.loads(path.read_text())
    config["State"]["ExitCode"] = code
    path.write_text(json.dumps(config))
    with (
        DockerSource(docker_root) as source,
        Store(tmp_path / "s", run=tmp_path / "r", driver="overlay") as store,
    ):
        result = store.adopt(source).run()
    assert (result.images, result.containers) == (9, 3)
    assert [fault.id for fault in result.faults] == [CONTAINERS["c-stopped"]]


def test_a_name_that_is_none_is_named_and_the_rest_comes(docker_root: Path, tmp_path: Path) -> None:
    path = docker_root / "image/aufs/repositories.json"
    repositories = json.loads(path.read_text())
    repositories["Repositories"]["A B"] = {"A B:1": f"sha256:{IMAGE}"}
    path.write_text(json.dumps(repositories))
    with (
        DockerSource(docker_root) as source,
        Store(tmp_path / "s", run=tmp_path / "r", driver="overlay") as store,
    ):
        result = store.adopt(source).run()
    assert (result.images, result.containers) == (9, 4)
    assert [(fault.kind, fault.id) for fault in result.faults] == [("name", "A B:1")]


def test_links_and_devices_for_documents_are_not_read(docker_root: Path) -> None:
    path = docker_root / "image/aufs/repositories.json"
    path.unlink()
    path.symlink_to("/etc/passwd")
    box = docker_root / f"containers/{CONTAINERS['c-stopped']}/config.v2.json"
    box.unlink()
    os.mkfifo(box)
    kinds = {fault.kind for fault in _faults(docker_root)}
    assert kinds == {"name", "container"}


def test_names_that_are_not_utf8_come_over(docker_root: Path, tmp_path: Path) -> None:
    mount = "59a68945489c6fdec23cee72c448cb413b5b673edcf567bec4c9aacd115b425c"
    upper = os.fsencode(docker_root / "aufs/diff" / mount)
    with open(upper + b"/root/\xff\xfe", "wb") as file:
        file.write(b"content\n")
    with open(upper + b"/.wh.\xff", "wb"):
        pass
    with (
        DockerSource(docker_root) as source,
        Store(tmp_path / "s", run=tmp_path / "r", driver="overlay") as store,
    ):
        store.adopt(source).run()
        changes = {change.path: str(change.kind) for change in store.open("c-running").changes()}
    assert changes[b"/root/\xff\xfe"] == "A"


# -- a root that is in use, or is none


def test_a_root_whose_databases_are_locked_is_refused(docker_root: Path) -> None:
    with (docker_root / "volumes/metadata.db").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(
            StoreError, match=r"in use by a running dockerd .*stop docker docker\.socket"
        ):
            DockerSource(docker_root)


@contextmanager
def _dockerd(tmp_path: Path, *arguments: str, fds: tuple[int, ...] = ()) -> Iterator[int]:
    """A process of that name; its id."""
    program = tmp_path / "dockerd"
    shutil.copy("/bin/sh", program)
    daemon = subprocess.Popen(
        [program, "-c", "read x", *arguments], stdin=subprocess.PIPE, pass_fds=fds
    )
    try:
        while Path(f"/proc/{daemon.pid}/comm").read_text() != "dockerd\n":
            time.sleep(0.01)  # vfork(2) comes back before exec(2) is done
        yield daemon.pid
    finally:
        daemon.communicate()


@pytest.mark.parametrize("option", [("--data-root", "{}"), ("--data-root={}",), ("-g", "{}")])
def test_a_dockerd_that_has_only_begun_is_seen_by_its_command_line(
    docker_root: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    words = [word.format(docker_root) for word in option]
    with (
        _dockerd(tmp_path, *words) as pid,
        pytest.raises(StoreError, match=f"in use by dockerd, process {pid}: .* docker.socket"),
    ):
        DockerSource(docker_root)
    for others in (("--data-root", "/elsewhere"), ("--data-root",)):
        with _dockerd(tmp_path, *others):
            DockerSource(docker_root).close()


def test_a_dockerd_with_a_user_namespace_is_seen(docker_root: Path, tmp_path: Path) -> None:
    (tmp_path / "docker").rename(tmp_path / "100000.100000")
    with (
        _dockerd(tmp_path, "--data-root", str(tmp_path)),
        pytest.raises(StoreError, match="in use by dockerd"),
    ):
        DockerSource(tmp_path / "100000.100000")


def test_a_dockerd_with_a_file_open_in_the_root_is_seen(docker_root: Path, tmp_path: Path) -> None:
    with (
        (docker_root / "image/aufs/repositories.json").open("rb") as file,
        _dockerd(tmp_path, fds=(file.fileno(),)) as pid,
        pytest.raises(StoreError, match=f"dockerd, process {pid}"),
    ):
        DockerSource(docker_root)


def test_a_root_with_a_mounted_container_is_refused(docker_root: Path) -> None:
    target = docker_root / "aufs/mnt" / BASE
    support.run("mount", "-t", "tmpfs", "none", target)
    try:
        with pytest.raises(StoreError, match="tmpfs is mounted at"):
            DockerSource(docker_root)
    finally:
        support.run("umount", target)


def test_a_dockerd_can_not_lock_its_databases_meanwhile(docker_root: Path) -> None:
    with DockerSource(docker_root), (docker_root / "volumes/metadata.db").open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with DockerSource(docker_root):
            pass  # another reader is welcome
        with pytest.raises(StoreError, match="in use"):
            DockerSource(docker_root, alone=True)


def test_only_one_may_be_alone_where_there_are_no_databases(docker_root: Path) -> None:
    for pattern in ("volumes/metadata.db", "buildkit/*.db", "network/files/*.db"):
        for path in docker_root.glob(pattern):
            path.unlink()
    with DockerSource(docker_root, alone=True), pytest.raises(StoreError, match="in use"):
        DockerSource(docker_root, alone=True)
    with DockerSource(docker_root), pytest.raises(StoreError, match="another adoption"):
        DockerSource(docker_root, alone=True)
    DockerSource(docker_root, alone=True).close()


def test_what_is_no_docker_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no"):
        DockerSource(tmp_path / "nothing")
    with pytest.raises(StoreError, match="no aufs"):
        DockerSource(tmp_path)
    (tmp_path / "image/overlay2").mkdir(parents=True)
    with pytest.raises(StoreError, match="storage driver overlay2"):
        DockerSource(tmp_path)
    (tmp_path / "graph").mkdir()
    with pytest.raises(StoreError, match=r"before Docker 1\.10"):
        DockerSource(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        DockerSource(tmp_path / "file")


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (f"containers/{CONTAINERS['c-stopped']}", "container"),
        (f"image/aufs/layerdb/sha256/{SECOND_CHAIN}", "layer"),
    ],
)
def test_a_link_in_place_of_a_record_is_named(docker_root: Path, part: str, kind: str) -> None:
    (docker_root / part).rename(docker_root / "elsewhere")
    (docker_root / part).symlink_to("/elsewhere")
    assert (kind, "its directory is none") in [(f.kind, f.what) for f in _faults(docker_root)]


def test_a_link_in_place_of_a_directory_is_not_followed(docker_root: Path, tmp_path: Path) -> None:
    shutil.move(docker_root / "aufs", tmp_path / "aufs")
    (docker_root / "aufs").symlink_to(tmp_path / "aufs")
    with pytest.raises(StoreError, match="no aufs"):
        DockerSource(docker_root)


def _open(root: Path) -> str:
    try:
        DockerSource(root).close()
    except PermissionRequired as error:
        return str(error)
    return "opened"


def test_an_ordinary_user_is_told_what_is_needed(ordinary_user: users.User, tmp_path: Path) -> None:
    for part in ("", "aufs/diff", "aufs/layers", "image/aufs"):
        (tmp_path / "docker" / part).mkdir(parents=True, exist_ok=True)
    for path in (*tmp_path.parents[:2], tmp_path, tmp_path / "docker"):
        path.chmod(0o755)
    for path in (tmp_path / "docker/aufs", tmp_path / "docker/image"):
        path.chmod(0o700)
    assert "use sudo" in ordinary_user.call(_open, tmp_path / "docker")


def test_reading_leaves_access_times(docker_root: Path) -> None:
    before = trees.fingerprint(docker_root)
    with DockerSource(docker_root) as source:
        assert verify_all(source) == []
    assert trees.fingerprint(docker_root) == before


def test_a_container_of_a_removed_image_is_named(docker_root: Path) -> None:
    path = docker_root / f"containers/{CONTAINERS['c-created']}/config.v2.json"
    config = json.loads(path.read_text())
    config["Image"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(config))
    (fault,) = _faults(docker_root)
    assert "is missing or damaged" in str(fault)
