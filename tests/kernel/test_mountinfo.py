from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.kernel import mount, mountinfo

NASTY = [b"two words", b"tab\there", b"new\nline", b"back\\slash", b"\\040", b"\xff\xfe", b"#hash"]


@pytest.fixture
def nasty(tmp_path: Path) -> Iterator[list[bytes]]:
    made: list[bytes] = []
    for name in NASTY:
        path = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(path)
        mount.mount(b"src " + name.replace(b"/", b""), path, "tmpfs")
        made.append(path)
    yield made
    for path in made:
        mount.unmount(path, lazy=True)


def test_a_line_with_optional_fields_and_without() -> None:
    points = mountinfo.parse(
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n"
        b"22 27 0:21 / /proc ro - proc proc rw\n"
    )
    assert points[0] == mountinfo.MountPoint(
        id=36, parent_id=35, major=98, minor=0, root=b"/mnt1", target=b"/mnt2",
        options=b"rw,noatime", optional=(b"master:1", b"shared:7"), fstype=b"ext3",
        source=b"/dev/root", super_options=b"rw,errors=continue",
    )  # fmt: skip
    assert points[1].optional == ()
    assert not points[0].read_only
    assert points[1].read_only


def test_escapes_are_undone() -> None:
    assert mountinfo.unescape(rb"a\040b\011c\012d\134e") == b"a b\tc\nd\\e"
    assert mountinfo.unescape(rb"\134040") == rb"\040"
    (point,) = mountinfo.parse(b"1 2 0:5 /a\\040b /t\\134x rw - fuse.s\\040x s\\011x rw\n")
    assert (point.root, point.target) == (b"/a b", b"/t\\x")
    assert (point.fstype, point.source) == (b"fuse.s x", b"s\tx")


def test_an_empty_source() -> None:
    (point,) = mountinfo.parse(b"1 2 0:5 / /t rw - tmpfs  rw\n")
    assert point.source == b""


@pytest.mark.root
def test_any_name_comes_back_as_it_was(nasty: list[bytes]) -> None:
    targets = {point.target: point for point in mountinfo.mounts()}
    for path, name in zip(nasty, NASTY, strict=True):
        assert path in targets
        assert targets[path].source == b"src " + name


@pytest.mark.root
def test_statmount_and_mountinfo_agree(nasty: list[bytes]) -> None:
    listed = mountinfo._listed_below(b"/")
    if listed is None:
        pytest.skip("no listmount(2) here")
    table = {point.id: point for point in mountinfo.mounts()}
    assert len(listed) == len(table) - 1
    for point in listed:
        assert point == table[point.id]


@pytest.mark.root
@pytest.mark.parametrize("listmount", [True, False])
def test_mounts_below_are_strictly_below(
    nasty: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listmount: bool
) -> None:
    if not listmount:
        monkeypatch.setattr(mountinfo, "_listed_below", lambda path: None)
    assert {p.target for p in mountinfo.mounts_below(tmp_path)} == set(nasty)
    assert mountinfo.mounts_below(nasty[0]) == []
    assert mountinfo.mounts_below(os.fsencode(tmp_path) + b"/two") == [], "a prefix is no parent"
    (tmp_path / "link").symlink_to(tmp_path)
    assert len(mountinfo.mounts_below(tmp_path / "link")) == len(NASTY)


@pytest.mark.root
@pytest.mark.parametrize("statmount", [True, False])
def test_mount_at_is_the_topmost(
    nasty: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statmount: bool
) -> None:
    if not statmount:
        monkeypatch.setattr(mountinfo, "_unique_id", lambda path: None)
    for path in nasty:
        mount.mount("above", path, "tmpfs")
    try:
        for path in nasty:
            point = mountinfo.mount_at(path)
            assert point is not None
            assert (point.target, point.source) == (path, b"above")
    finally:
        for path in nasty:
            mount.unmount(path)
    assert mountinfo.mount_at(tmp_path) is None
    assert mountinfo.mount_at(tmp_path / "missing") is None


@pytest.mark.root
@pytest.mark.parametrize("statx", [True, False])
def test_is_mountpoint(
    nasty: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statx: bool
) -> None:
    if not statx:

        def unknown(path: str | bytes | Path) -> tuple[int, int, None]:
            os.lstat(path)
            return 0, 0, None

        monkeypatch.setattr(mountinfo, "_statx_mount", unknown)
    for path in nasty:
        assert mountinfo.is_mountpoint(path)
    assert mountinfo.is_mountpoint("/")
    assert not mountinfo.is_mountpoint(tmp_path)
    assert not mountinfo.is_mountpoint(tmp_path / "missing")
    link = os.fsencode(tmp_path) + b"/link"
    os.symlink(nasty[0], link)
    assert not mountinfo.is_mountpoint(link), "a symlink to one is none"


@pytest.mark.root
def test_a_bind_mounted_file_is_a_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mount.bind(tmp_path / "file", tmp_path / "file")
    try:
        assert mountinfo.is_mountpoint(tmp_path / "file")
        point = mountinfo.mount_at(tmp_path / "file")
        assert point is not None and point.root.endswith(b"/file")
    finally:
        mount.unmount(tmp_path / "file")


def test_the_table_of_another_process() -> None:
    assert mountinfo.mounts(1)[0].target
