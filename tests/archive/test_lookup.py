"""Single names in a stack of layers, asked for on the way down."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.archive.lookup import Lookup
from lamina.archive.whiteout import AUFS, OVERLAY, OVERLAY_USER, Format
from tests.archive.layers import make

pytestmark = pytest.mark.root
ALL = pytest.mark.parametrize("fmt", [AUFS, OVERLAY, OVERLAY_USER], ids=lambda f: f.name)


@ALL
def test_the_topmost_that_mentions_a_name_decides(fmt: Format, tmp_path: Path) -> None:
    layers = [
        make(tmp_path / "3", fmt, "a", "-b", "d/x"),
        make(tmp_path / "2", fmt, "a", "b", "c", "d/!", "d/y"),
        make(tmp_path / "1", fmt, "d/z", "e/f"),
    ]
    with Lookup(layers, fmt) as lookup:
        found = lookup.find(b"a")
        assert found is not None
        assert found.status.st_ino == (tmp_path / "3/a").stat().st_ino
        assert lookup.find(b"b") is None
        assert lookup.names() == [b"a", b"c", b"d", b"e"]
        lookup.enter(b"d")
        assert lookup.names() == [b"x", b"y"]
        assert lookup.find(b"z") is None
        lookup.leave()
        lookup.enter(b"e")
        assert (lookup.names(), lookup.depth) == ([b"f"], 1)


@ALL
@pytest.mark.parametrize("name", [b"file", b"gone", b"missing", b"link"])
def test_where_no_directory_shows_there_is_nothing(
    fmt: Format, tmp_path: Path, name: bytes
) -> None:
    layers = [
        make(tmp_path / "2", fmt, "file", "-gone"),
        make(tmp_path / "1", fmt, "file/x", "gone/x", "real/x"),
    ]
    (layers[0] / "link").symlink_to("../1/real")
    with Lookup(layers, fmt) as lookup:
        lookup.enter(name)
        assert (lookup.fd, lookup.names(), lookup.find(b"x")) == (-1, [], None)
        lookup.enter(b"further")
        lookup.leave()
        lookup.leave()
        assert lookup.find(b"file") is not None


def test_no_layers_show_nothing() -> None:
    with Lookup([], OVERLAY) as lookup:
        assert (lookup.fd, lookup.names(), lookup.find(b"x")) == (-1, [], None)
        lookup.enter(b"x")
        lookup.leave()


@ALL
def test_paths_are_found_in_any_order(fmt: Format, tmp_path: Path) -> None:
    layers = [
        make(tmp_path / "3", fmt, "a/b/new", "-a/gone", "o/!", "o/x", "f"),
        make(tmp_path / "2", fmt, "a/b/old", "a/gone", "o/y", "f/x"),
        make(tmp_path / "1", fmt, "a/b/c/deep", "a/gone", "o/z"),
    ]
    there = {b"a/b/new": 3, b"a/b/old": 2, b"a/b/c/deep": 1, b"o/x": 3, b"f": 3, b"a": 3, b"": 3}
    not_there = (b"a/gone", b"a/gone/x", b"o/y", b"o/z", b"f/x", b"none", b"none/a/b", b"a/b/c/b")
    with Lookup(layers, fmt) as lookup:
        for path in sorted([*there, *not_there]) + sorted([*there, *not_there], reverse=True):
            found = lookup.find_path(path)
            assert (found is not None) is (path in there), path
            if found is not None:
                expected = (tmp_path / str(there[path]) / path.decode()).stat()
                assert found.status.st_ino == expected.st_ino, path
        lookup.go(b"a/b")
        assert lookup.names() == [b"c", b"new", b"old"]
        lookup.go(b"")
        assert lookup.names() == [b"a", b"f", b"o"]
    with Lookup([], fmt) as lookup:
        assert lookup.find_path(b"") is None
