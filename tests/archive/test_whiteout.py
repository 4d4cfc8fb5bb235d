"""The three whiteout formats, each alone in one directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.archive import whiteout
from lamina.archive.stack import walk
from lamina.archive.whiteout import AUFS, OVERLAY, OVERLAY_USER, Format, Mark
from lamina.errors import InvalidArchive
from tests.archive.layers import make, overlay

ALL = pytest.mark.parametrize("fmt", [AUFS, OVERLAY, OVERLAY_USER], ids=lambda f: f.name)
OVERLAYS = pytest.mark.parametrize("fmt", [OVERLAY, OVERLAY_USER], ids=lambda f: f.name)
pytestmark = pytest.mark.root


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def need_kernel(*version: int) -> None:
    found = os.uname().release.split(".")
    if tuple(int(part) for part in found[:2]) < version:
        pytest.skip(f"needs Linux {'.'.join(map(str, version))}")


@pytest.fixture
def no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on overlayfs, which refuses to make a device 0:0."""

    def mknod(path: bytes, *_args: object, **_kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "mknod", mknod)


@ALL
def test_a_whiteout_is_listed_apart_from_entries(
    fmt: Format, directory: int, tmp_path: Path
) -> None:
    (tmp_path / "b").write_text("")
    (tmp_path / "a").mkdir()
    fmt.write_whiteout(directory, b"z")
    fmt.write_whiteout(directory, b"c")
    fmt.write_whiteout(directory, b"c")
    listing = fmt.listing(directory)
    assert (listing.opaque, listing.whiteouts, listing.names) == (False, [b"c", b"z"], [b"a", b"b"])
    fmt.remove_whiteout(directory, b"c")
    fmt.remove_whiteout(directory, b"nothing")
    assert fmt.listing(directory).whiteouts == [b"z"]


@ALL
def test_hidden_name_agrees_with_the_listing(fmt: Format, directory: int, tmp_path: Path) -> None:
    (tmp_path / "live").write_text("")
    (tmp_path / "link").symlink_to("live")
    os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
    fmt.write_whiteout(directory, b"gone")
    hidden = []
    for name in os.listdir(os.fsencode(tmp_path)):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        hidden.append(fmt.hidden_name(directory, name, status))
    assert sorted(filter(None, hidden)) == fmt.listing(directory).whiteouts == [b"gone"]


@ALL
def test_opaque_is_set_seen_and_cleared(fmt: Format, directory: int) -> None:
    assert not fmt.is_opaque(directory)
    fmt.set_opaque(directory)
    fmt.set_opaque(directory)
    assert fmt.is_opaque(directory)
    assert fmt.listing(directory) == whiteout.Listing(True, [], [])
    fmt.clear_opaque(directory)
    fmt.clear_opaque(directory)
    assert not fmt.is_opaque(directory)


@ALL
@pytest.mark.parametrize("name", [b"", b".", b".."])
def test_a_whiteout_of_no_entry_is_refused(fmt: Format, directory: int, name: bytes) -> None:
    with pytest.raises(InvalidArchive):
        fmt.write_whiteout(directory, name)
    assert os.listdir(directory) == []


@OVERLAYS
def test_a_live_entry_is_not_overwritten_by_its_whiteout(
    fmt: Format, directory: int, tmp_path: Path
) -> None:
    (tmp_path / "live").write_text("")
    with pytest.raises(FileExistsError):
        fmt.write_whiteout(directory, b"live")


@OVERLAYS
@pytest.mark.usefixtures("no_devices")
def test_without_devices_the_xattr_form_is_written(
    fmt: Format, directory: int, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("")
    fmt.write_whiteout(directory, b"gone")
    fmt.write_whiteout(directory, b"gone2")
    status = os.stat(tmp_path / "gone")
    assert status.st_size == 0
    assert fmt.hidden_name(directory, b"gone", status) == b"gone"
    assert fmt.listing(directory) == whiteout.Listing(False, [b"gone", b"gone2"], [b"empty"])
    assert not fmt.is_opaque(directory)
    with pytest.raises(FileExistsError):
        fmt.write_whiteout(directory, b"empty")


@OVERLAYS
@pytest.mark.usefixtures("no_devices")
def test_an_opaque_directory_has_no_use_for_whiteouts_by_xattr(
    fmt: Format, directory: int, tmp_path: Path
) -> None:
    (tmp_path / "live").write_text("")
    fmt.write_whiteout(directory, b"gone")
    fmt.set_opaque(directory)
    fmt.write_whiteout(directory, b"gone")
    assert fmt.listing(directory) == whiteout.Listing(True, [], [b"live"])


@OVERLAYS
def test_layers_on_an_overlay_mount_hide_by_attribute(fmt: Format, tmp_path: Path) -> None:
    """overlayfs refuses to make a device 0:0, and reads the attribute in lower layers."""
    need_kernel(6, 7)
    (tmp_path / "empty").mkdir()
    with overlay(tmp_path / "outer", [tmp_path / "empty"], tmp_path / "upper") as outer:
        base = make(outer / "base", fmt, "d/gone", "d/kept", "top")
        layer = make(outer / "layer", fmt, "-d/gone", "d/new", "d/empty")
        (layer / "d/empty").write_text("")
        assert (layer / "d/gone").is_file()
        listed = [(node.path, node.kind.value) for node in walk([layer], fmt)]
        assert (b"d/gone", "whiteout") in listed
        assert (b"d/empty", "entry") in listed
        user = fmt is OVERLAY_USER
        with overlay(outer / "inner", [layer, base], user=user) as inner:
            assert sorted(os.listdir(inner / "d")) == ["empty", "kept", "new"]
            assert not (inner / "d/gone").exists()


def test_aufs_whiteout_wins_over_a_live_name(directory: int, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    AUFS.write_whiteout(directory, b"both")
    assert AUFS.listing(directory) == whiteout.Listing(False, [b"both"], [])


def test_aufs_bookkeeping_is_no_entry(directory: int, tmp_path: Path) -> None:
    for name in (".wh..wh.aufs", ".wh..wh.orph", ".wh..wh.plnk", ".wh.", ".wh..", ".wh..."):
        (tmp_path / name).mkdir()
        assert AUFS.is_meta(name.encode())
        assert not OVERLAY.is_meta(name.encode())
    assert AUFS.listing(directory) == whiteout.Listing(False, [], [])


def test_a_private_xattr_is_that_of_the_format_alone() -> None:
    assert OVERLAY.private_xattr("trusted.overlay.origin")
    assert not OVERLAY.private_xattr("user.overlay.origin")
    assert OVERLAY_USER.private_xattr("user.overlay.origin")
    assert not AUFS.private_xattr("trusted.overlay.origin")
    assert not OVERLAY.private_xattr("trusted.overlay.overlay.origin")  # another overlay's in it


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"etc", (Mark.ENTRY, b"etc")),
        (b".wh", (Mark.ENTRY, b".wh")),
        (b".wh.etc", (Mark.WHITEOUT, b"etc")),
        (b".wh..etc", (Mark.WHITEOUT, b".etc")),
        (b".wh..wh..opq", (Mark.OPAQUE, b"")),
        (b".wh..wh.plnk", (Mark.META, b".wh..wh.plnk")),
    ],
)
def test_archive_names_are_told_apart(name: bytes, expected: tuple[Mark, bytes]) -> None:
    assert whiteout.parse(name) == expected


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh..."])
def test_an_archive_whiteout_of_no_entry_is_invalid(name: bytes) -> None:
    with pytest.raises(InvalidArchive, match="names no entry"):
        whiteout.parse(name)
