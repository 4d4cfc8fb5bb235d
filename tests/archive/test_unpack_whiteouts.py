"""Whiteouts and opaque marks in a layer's tar, in any order, over lower layers."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from lamina.archive.stack import NodeKind, walk
from lamina.archive.tar import Entry
from lamina.archive.whiteout import AUFS, OVERLAY, OVERLAY_USER, Format
from lamina.errors import InvalidArchive
from tests.archive.tars import MTIME_NS, directory, file, hardlink, symlink, unpacked
from tests.archive.test_fold import merged
from tests.archive.trees import describe, differences

pytestmark = pytest.mark.root
ALL = pytest.mark.parametrize("fmt", [AUFS, OVERLAY, OVERLAY_USER], ids=lambda f: f.name)


def marks(root: Path, fmt: Format) -> list[str]:
    """A layer in one line a name: ``-name`` whiteout, ``name!`` opaque directory."""
    shown = []
    for node in walk([root], fmt):
        mark = "-" if node.kind is NodeKind.WHITEOUT else ""
        end = "!" if node.opaque else "/" if node.fd >= 0 else ""
        shown.append(f"{mark}{os.fsdecode(node.path)}{end}")
    return shown[1:]


def lower(root: Path, fmt: Format, *entries: tuple[Entry, bytes]) -> Path:
    unpacked(root, *entries, fmt=fmt)
    return root


@ALL
def test_whiteouts_become_the_formats_own(tmp_path: Path, fmt: Format) -> None:
    unpacked(
        tmp_path / "l",
        file(".wh.a"),
        file("d/.wh.b", b"content does not matter"),
        directory("e"),
        file("e/.wh..wh..opq"),
        file("e/f", b"x"),
        fmt=fmt,
    )
    assert marks(tmp_path / "l", fmt) == ["-a", "d/", "-d/b", "e!", "e/f"]


@ALL
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_an_own_directory_with_a_whiteout_is_opaque_in_any_order(
    tmp_path: Path, fmt: Format, order: tuple[int, ...]
) -> None:
    entries = [file(".wh.d"), directory("d", 0o700), file("d/f", b"x")]
    unpacked(tmp_path / "l", *(entries[n] for n in order), fmt=fmt)
    assert marks(tmp_path / "l", fmt) == ["d!", "d/f"]
    assert describe(tmp_path / "l")[b"d"]["mode"] == "0o40700"
    assert describe(tmp_path / "l")[b"d"]["mtime"] == MTIME_NS


@ALL
@pytest.mark.parametrize(
    "entry", [file("x", b"x"), symlink("x", "y"), hardlink("x", "y")], ids=lambda e: e[0].type.name
)
@pytest.mark.parametrize("first", ["whiteout", "entry"])
def test_an_own_name_wins_over_its_whiteout(
    tmp_path: Path, fmt: Format, entry: tuple[Entry, bytes], first: str
) -> None:
    both = [file(".wh.x"), entry]
    if first == "entry":
        both.reverse()
    unpacked(tmp_path / "l", file("y", b"y"), *both, fmt=fmt)
    assert marks(tmp_path / "l", fmt) == ["x", "y"]
    assert sorted(os.listdir(tmp_path / "l")) == ["x", "y"]


@ALL
def test_an_opaque_mark_may_come_last_and_hits_no_own_name(tmp_path: Path, fmt: Format) -> None:
    unpacked(
        tmp_path / "l",
        file("d/f", b"x"),
        file("d/sub/.wh.gone"),
        file("d/.wh.gone"),
        file("d/.wh..wh..opq"),
        file("d/.wh.gone-later"),
        file("d/sub/.wh.gone-later"),
        file("d/g", b"y"),
        fmt=fmt,
    )
    # What an opaque directory has no lower layer under needs no whiteouts, and the kernel would
    # list them.
    assert marks(tmp_path / "l", fmt) == ["d!", "d/f", "d/g", "d/sub/"]
    if fmt is not AUFS:
        assert sorted(os.listdir(tmp_path / "l/d")) == ["f", "g", "sub"]
        assert os.listdir(tmp_path / "l/d/sub") == []


@ALL
def test_an_opaque_top_hides_every_lower_name(tmp_path: Path, fmt: Format) -> None:
    bottom = lower(tmp_path / "0", fmt, file("a", b"a"), file("b/c", b"c"), file("d", b"d"))
    middle = lower(tmp_path / "1", fmt, file(".wh.a"), file("e", b"e"))
    unpacked(
        tmp_path / "l",
        file("b/mine", b"x"),
        file(".wh..wh..opq"),
        file("e", b"mine"),
        fmt=fmt,
        lowers=(middle, bottom),
    )
    assert marks(tmp_path / "l", fmt) == ["-d", "b!", "b/mine", "e"]


@pytest.mark.parametrize("length", [252, 255])
def test_the_longest_names_can_be_hidden(tmp_path: Path, length: int) -> None:
    name = "x" * length
    below = lower(tmp_path / "below", OVERLAY, directory("d"), file(name), file(f"d/{name}"))
    unpacked(tmp_path / "l", file(f".wh.{name}"), file(f"d/.wh.{name}"), lowers=(below,))
    assert marks(tmp_path / "l", OVERLAY) == [f"-{name}", "d/", f"-d/{name}"]
    with pytest.raises(InvalidArchive, match="too long"):  # AUFS has no place for such a whiteout
        unpacked(tmp_path / "aufs", file(f".wh.{name}"), fmt=AUFS)


@pytest.mark.parametrize("name", [f".wh.{'x' * 256}", f".wh.{'x' * 255}/below"])
def test_names_too_long_to_be_there_can_not_be_hidden(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArchive):
        unpacked(tmp_path / "l", file(name))


@pytest.mark.parametrize(
    "name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh...", ".wh.x/below", "d/.wh.x/y"]
)
def test_whiteouts_of_nothing_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArchive) as caught:
        unpacked(tmp_path / "l", directory("d"), file("d/x"), file(name))
    assert caught.value.entry == name.encode()


def test_a_name_with_the_prefix_inside_is_a_name(tmp_path: Path) -> None:
    unpacked(tmp_path / "l", file("a.wh.b", b"x"), file("d.wh.e/f", b"y"))
    assert marks(tmp_path / "l", OVERLAY) == ["a.wh.b", "d.wh.e/", "d.wh.e/f"]


def test_overlays_own_attributes_are_never_set(tmp_path: Path) -> None:
    """They are the content's: an overlay of the kernel's has them under another name."""
    warnings: list[str] = []
    marked = {
        "trusted.overlay.opaque": b"y",
        "user.overlay.opaque": b"y",
        "trusted.overlay.redirect": b"/etc",
        "trusted.overlay.metacopy": b"",
        "user.kept": b"1",
    }
    unpacked(
        tmp_path / "l",
        directory("d", xattrs=marked),
        file("f", b"x", xattrs=marked),
        symlink("s", "f", xattrs={"trusted.overlay.opaque": b"y"}),
        warn=warnings.append,
    )
    for path in (b"d", b"f"):
        assert describe(tmp_path / "l")[path]["xattrs"] == {
            "trusted.overlay.overlay.opaque": b"y",
            "user.overlay.opaque": b"y",  # a mark only to a mount with userxattr
            "trusted.overlay.overlay.redirect": b"/etc",
            "trusted.overlay.overlay.metacopy": b"",
            "user.kept": b"1",
        }
    assert warnings == []


# --- implied directories


@ALL
def test_implied_directories_are_as_the_topmost_lower_has_them(tmp_path: Path, fmt: Format) -> None:
    bottom = lower(
        tmp_path / "0",
        fmt,
        directory(".", 0o711, uid=9),
        directory("a", 0o1777, uid=1, gid=2, xattrs={"user.x": b"0"}),
        directory("a/b", 0o700, uid=3, mtime_ns=7),
        directory("gone", 0o700),
        directory("opaque/in", 0o700),
    )
    top = lower(
        tmp_path / "1",
        fmt,
        directory("a", 0o2750, uid=5, gid=6, xattrs={"user.x": b"1"}),
        file(".wh.gone"),
        file("opaque/.wh..wh..opq"),
    )
    unpacked(
        tmp_path / "l",
        file("a/b/c/f", b"x"),
        file("gone/f", b"x"),
        file("opaque/in/f", b"x"),
        fmt=fmt,
        lowers=(top, bottom),
    )
    tree = describe(tmp_path / "l")
    got = {path: (about["mode"], about["owner"]) for path, about in tree.items()}
    assert got[b""] == ("0o40755", (0, 0))  # the upper lower's, which said nothing of its top
    assert got[b"a"] == ("0o42750", (5, 6)) and tree[b"a"]["mtime"] == MTIME_NS
    assert tree[b"a"]["xattrs"] == {"user.x": b"1"}
    assert got[b"a/b"] == ("0o40700", (3, 0)) and tree[b"a/b"]["mtime"] == 7
    for path in (b"a/b/c", b"gone", b"opaque/in"):
        assert got[path] == ("0o40755", (0, 0))


def test_links_of_lower_layers_are_not_followed(tmp_path: Path) -> None:
    below = lower(tmp_path / "0", OVERLAY, symlink("lib", "usr/lib"), directory("usr/lib"))
    unpacked(tmp_path / "l", file("lib/f", b"x"), lowers=(below,))
    assert marks(tmp_path / "l", OVERLAY) == ["lib/", "lib/f"]


# --- hard links to files of lower layers

LINKED: dict[str, Any] = {
    "mode": 0o4751,
    "uid": 11,
    "gid": 12,
    "xattrs": {"user.x": b"y", "security.capability": b"\1\0\0\2" + bytes(16)},
    "mtime_ns": 1_111_111_111_222_222_222,
}


@ALL
def test_a_link_to_a_lower_file_copies_it_up(ext4: Path, fmt: Format) -> None:
    below = lower(ext4 / "0", fmt, file("d/a", b"content" * 1000, **LINKED))
    between = lower(ext4 / "1", fmt, file("other", b"x"))
    result = unpacked(
        ext4 / "l",
        hardlink("b", "d/a"),
        hardlink("c", "./d/a"),
        hardlink("d2/e", "b"),
        fmt=fmt,
        lowers=(between, below),
    )
    tree = describe(ext4 / "l")
    assert sorted(tree) == [b"", b"b", b"c", b"d", b"d/a", b"d2", b"d2/e"]
    assert {tree[path]["same as"] for path in (b"b", b"c", b"d/a", b"d2/e")} == {b"b"}
    copied, original = tree[b"b"], describe(below)[b"d/a"]
    for key in ("mode", "owner", "xattrs", "mtime", "content"):
        assert copied[key] == original[key]
    assert result.size == 7000
    assert (below / "d/a").stat().st_nlink == 1


@ALL
@pytest.mark.parametrize(
    "hiding", [file(".wh.a"), file(".wh..wh..opq"), file("a", b"own")], ids=["name", "all", "own"]
)
@pytest.mark.parametrize("first", ["link", "hiding"])
def test_a_linked_lower_name_that_the_layer_hides_stays_hidden(
    tmp_path: Path, fmt: Format, hiding: tuple[Entry, bytes], first: str
) -> None:
    below = lower(tmp_path / "0", fmt, file("a", b"lower"))
    entries = [hardlink("b", "a"), hiding]
    if first == "hiding":
        entries.reverse()
    unpacked(tmp_path / "l", *entries, fmt=fmt, lowers=(below,))
    own = hiding[0].name == b"a"
    if own and first == "hiding":
        assert (tmp_path / "l/b").read_bytes() == b"own"
    else:
        assert (tmp_path / "l/b").read_bytes() == b"lower"
        assert marks(tmp_path / "l", fmt) == (["a", "b"] if own else ["-a", "b"])


@pytest.mark.parametrize("target", ["gone", "opaque/hidden", "file/below", "dir", "nowhere/f"])
def test_links_to_what_lower_layers_do_not_show_are_refused(tmp_path: Path, target: str) -> None:
    bottom = lower(
        tmp_path / "0",
        OVERLAY,
        file("gone", b"x"),
        file("opaque/hidden", b"x"),
        file("file/below", b"x"),
        directory("dir"),
    )
    top = lower(
        tmp_path / "1",
        OVERLAY,
        file(".wh.gone"),
        file("opaque/.wh..wh..opq"),
        file("file", b"now a file"),
    )
    with pytest.raises(InvalidArchive):
        unpacked(tmp_path / "l", hardlink("x", target), lowers=(top, bottom))


# --- the kernel agrees


def test_the_kernel_shows_what_the_layers_say(ext4: Path) -> None:
    bottom = lower(
        ext4 / "0",
        OVERLAY,
        directory("."),
        file("a", b"a"),
        file("d/x", b"x"),
        file("d/y", b"y"),
        file("o/x", b"x"),
        file("replaced/x", b"x"),
    )
    top = ext4 / "1"
    unpacked(
        top,
        directory("."),
        file("d/.wh.x"),
        file("d/z", b"z"),
        file("o/.wh..wh..opq"),
        file("o/.wh.x"),
        file("o/n", b"n"),
        directory("replaced"),
        file("replaced/y", b"y"),
        file(".wh.replaced"),
        file(".wh.never"),
        hardlink("a2", "a"),
        lowers=(bottom,),
    )
    shown = merged(ext4 / "m", [top, bottom])
    assert sorted(shown) == [
        b"", b"a", b"a2", b"d", b"d/y", b"d/z", b"o", b"o/n", b"replaced", b"replaced/y",
    ]  # fmt: skip
    assert shown[b"a2"]["same as"] == b"a"
    assert differences({b"d/z": shown[b"d/z"]}, {b"d/z": describe(top)[b"d/z"]}) == []
