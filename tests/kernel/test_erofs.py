"""EROFS mounts of plain files and of loop devices; nothing stays behind either way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.archive.erofs import build_index, open_image
from lamina.errors import MountError
from lamina.kernel import erofs, loop, mount, mountinfo
from lamina.kernel.idmap import IdMap, IdRange
from lamina.kernel.userns import idmap_mount, open_user_namespace
from tests import leaks
from tests.archive.tars import archive, directory, file
from tests.support import need, need_filesystem

pytestmark = pytest.mark.root


@pytest.fixture
def layer(ext4: Path) -> Path:
    """A directory with a tar and its index."""
    need_filesystem("erofs")
    return _layer(ext4)


def _layer(place: Path) -> Path:
    tar = archive(directory("."), file("f", b"content" * 100, uid=5, gid=7, mode=0o640))
    (place / "tar").write_bytes(tar)
    with (place / "index").open("wb") as out:
        build_index(place / "tar", out.fileno(), identity="sha256:00")
    return place


@contextmanager
def _mounted(layer: Path, **options: object) -> Iterator[Path]:
    target = layer / "mnt"
    target.mkdir(exist_ok=True)
    erofs.mount_erofs(layer / "index", [layer / "tar"], target, **options)  # type: ignore[arg-type]
    try:
        yield target
    finally:
        mount.unmount(target)


@contextmanager
def _detached(layer: Path) -> Iterator[int]:
    fd = erofs.open_mount(layer / "index", [layer / "tar"])
    try:
        yield fd
    finally:
        os.close(fd)


def _loops(place: Path) -> set[str]:
    return leaks.Snapshot.take(str(place)).loops


def test_a_kernel_that_wants_loop_devices_and_has_none_is_told_of(
    layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise MountError(errno.ENOTBLK, "mount erofs", "index")

    monkeypatch.setattr(erofs, "_open_mount", refuse)
    monkeypatch.setattr(loop, "CONTROL", str(layer / "loop-control"))
    with pytest.raises(MountError, match=r"Block device required.*no loop devices.*modprobe loop"):
        erofs.open_mount(layer / "index", [layer / "tar"])


def test_plain_files_are_mounted_as_they_are(layer: Path) -> None:
    if not _mounts_files(layer):
        pytest.skip("this kernel mounts no plain files")
    with _mounted(layer, use_loop=False) as root:
        assert (root / "f").read_bytes() == b"content" * 100
        assert _loops(layer) == set()
        with pytest.raises(OSError, match="Read-only"):
            (root / "g").touch()


def _mounts_files(layer: Path) -> bool:
    return erofs.way_to_mount(layer / "index", [layer / "tar"]) == "file"


@pytest.mark.parametrize("place", ["ext4", "xfs", "tmpfs_small"])
def test_loop_devices_go_with_the_mount(place: str, request: pytest.FixtureRequest) -> None:
    need_filesystem("erofs")
    layer = _layer(request.getfixturevalue(place))
    with _mounted(layer, use_loop=True) as root:
        assert len(_loops(layer)) == 2
        assert (root / "f").read_bytes() == b"content" * 100
    assert _loops(layer) == set()


def test_loop_devices_are_what_is_left_for_files_on_tmpfs(tmpfs_small: Path) -> None:
    need_filesystem("erofs")
    layer = _layer(tmpfs_small)
    with _mounted(layer) as root:
        assert (root / "f").read_bytes() == b"content" * 100
    assert erofs.way_to_mount(layer / "index", [layer / "tar"]) in ("file", "loop")
    assert _loops(layer) == set()


@pytest.mark.parametrize("use_loop", [None, True, False])
def test_a_failed_mount_leaves_nothing(layer: Path, use_loop: bool | None) -> None:
    (layer / "index").write_bytes(b"no index" * 1000)
    with pytest.raises(MountError):
        erofs.open_mount(layer / "index", [layer / "tar"], use_loop=use_loop)
    assert _loops(layer) == set()
    with pytest.raises(FileNotFoundError if use_loop else OSError):
        erofs.open_mount(_layer(layer) / "index", [layer / "gone"], use_loop=use_loop)
    assert _loops(layer) == set()


def test_a_mount_that_is_never_attached_is_gone_when_closed(layer: Path) -> None:
    fd = erofs.open_mount(layer / "index", [layer / "tar"], use_loop=True)
    assert len(_loops(layer)) == 2
    os.close(fd)
    assert _loops(layer) == set()


def test_paths_longer_than_an_option_may_be(layer: Path) -> None:
    deep = layer / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    with _mounted(_layer(deep)) as root:
        assert (root / "f").read_bytes() == b"content" * 100


def test_files_removed_while_mounted_stay_readable(layer: Path) -> None:
    with _mounted(layer) as root:
        (layer / "index").unlink()
        (layer / "tar").unlink()
        assert (root / "f").read_bytes() == b"content" * 100


def test_owners_are_mapped_by_the_mount(layer: Path) -> None:
    need("unshare")
    ranges = (IdRange(0, 100_000, 1000),)
    fd = open_user_namespace(IdMap(ranges, ranges))
    try:
        with _detached(layer) as mounted:
            idmap_mount(mounted, fd)
            status = os.stat(f"/proc/self/fd/{mounted}/f")
            assert (status.st_uid, status.st_gid) == (100_005, 100_007)
            with pytest.raises(PermissionError):  # it has one
                idmap_mount(mounted, fd)
    finally:
        os.close(fd)


def test_a_loop_device_lives_as_long_as_it_is_open(ext4: Path) -> None:
    path = ext4 / "file"
    path.write_bytes(b"x" * 4096)
    for direct_io in (True, False):
        fd, name = loop.attach(path, direct_io=direct_io)
        try:
            assert os.pread(fd, 4, 0) == b"xxxx"
            assert len(_loops(ext4)) == 1
            writable = os.open(name, os.O_RDWR)
            with pytest.raises(PermissionError):
                os.write(writable, b"y" * 512)
            os.close(writable)
        finally:
            os.close(fd)
        assert _loops(ext4) == set()


def test_the_mount_table_names_the_index(layer: Path) -> None:
    with _mounted(layer) as root:
        assert mountinfo.is_mountpoint(root)
        entry = mountinfo.mount_at(root)
        assert entry is not None
        assert entry.fstype == b"erofs"
        assert entry.source == os.fsencode(layer / "index")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The index of a tar with a top that is like no other."""
    top = directory(".", 0o1751, uid=70_000, gid=8)
    (tmp_path / "tar").write_bytes(archive(top, file("a", b"content")))
    with (tmp_path / "index").open("xb") as out:
        build_index(tmp_path / "tar", out.fileno(), identity="sha256:1")
    return tmp_path / "index"


def test_the_head_of_an_index_is_what_the_reader_of_all_of_it_finds(index: Path) -> None:
    head = erofs.read_head(index)
    with open_image(index) as image:
        assert head == (len(image.devices), image.root.mode, image.root.uid, image.root.gid)
    assert head == (1, stat.S_IFDIR | 0o1751, 70_000, 8)


@pytest.mark.parametrize("length", [0, 1024, 1024 + 13, 1024 + 127, 1024 + 128])
def test_what_is_cut_off_has_no_head(index: Path, length: int) -> None:
    os.truncate(index, length)
    with pytest.raises(OSError, match="clean"):
        erofs.read_head(index)


def test_another_file_has_no_head(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(os.urandom(8192))
    with pytest.raises(OSError, match="clean"):
        erofs.read_head(tmp_path / "other")
