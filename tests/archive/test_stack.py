"""The merged view of several layer directories."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest

from lamina.archive.stack import Node, NodeKind, walk
from lamina.archive.whiteout import AUFS, OVERLAY, OVERLAY_USER, PLAIN, Format, View
from lamina.kernel.remove import remove_tree
from tests.archive.layers import chain, in_memory, make

pytestmark = pytest.mark.root
ALL = pytest.mark.parametrize("fmt", [AUFS, OVERLAY, OVERLAY_USER], ids=lambda f: f.name)


def show(node: Node) -> str:
    mark = "-" if node.kind is NodeKind.WHITEOUT else ""
    end = "!" if node.opaque else "/" if node.fd >= 0 else ""
    return f"{mark}{os.fsdecode(node.path)}{end}@{node.layer}"


def view(layers: Sequence[Path], fmt: View) -> list[str]:
    return [show(node) for node in walk(layers, fmt)]


@ALL
def test_one_layer_is_itself_whiteouts_first(fmt: Format, tmp_path: Path) -> None:
    top = make(tmp_path / "1", fmt, "b", "-c", "a/z", "-a/y", "d/!", "d/x")
    assert view([top], fmt) == ["/@0", "-c@0", "a/@0", "-a/y@0", "a/z@0", "b@0", "d!@0", "d/x@0"]


@ALL
def test_directories_merge_and_the_topmost_entry_counts(fmt: Format, tmp_path: Path) -> None:
    upper = make(tmp_path / "1", fmt, "d/both", "d/only-1")
    lower = make(tmp_path / "2", fmt, "d/both", "d/only-2", "e/x")
    assert view([upper, lower], fmt) == [
        "/@0", "d/@0", "d/both@0", "d/only-1@0", "d/only-2@1", "e/@1", "e/x@1",
    ]  # fmt: skip


@ALL
def test_a_whiteout_hides_lower_entries_and_stays(fmt: Format, tmp_path: Path) -> None:
    upper = make(tmp_path / "1", fmt, "-d", "-f", "-nothing")
    lower = make(tmp_path / "2", fmt, "d/x", "f", "g")
    assert view([upper, lower], fmt) == ["/@0", "-d@0", "-f@0", "-nothing@0", "g@1"]


@ALL
@pytest.mark.parametrize(
    ("upper", "middle"),
    [
        (["d/!", "d/new"], ["d/middle"]),
        (["d/new"], ["-d"]),
        (["d/new"], ["d"]),
        (["d/new"], ["d/!"]),
        (["d/new"], ["d/!", "-d/ghost"]),
    ],
    ids=["opaque", "over a whiteout", "over a file", "over an opaque", "ghost"],
)
def test_a_directory_that_cuts_is_opaque(
    fmt: Format, tmp_path: Path, upper: list[str], middle: list[str]
) -> None:
    layers = [
        make(tmp_path / "1", fmt, *upper),
        make(tmp_path / "2", fmt, *middle),
        make(tmp_path / "3", fmt, "d/lowest"),
    ]
    assert view(layers, fmt) == ["/@0", "d!@0", "d/new@0"]


@ALL
def test_below_an_opaque_directory_nothing_lower_shows(fmt: Format, tmp_path: Path) -> None:
    upper = make(tmp_path / "1", fmt, "d/!", "d/e/x", "-d/e/y")
    lower = make(tmp_path / "2", fmt, "d/e/z", "d/f")
    assert view([upper, lower], fmt) == ["/@0", "d!@0", "d/e/@0", "d/e/x@0"]


@ALL
def test_an_opaque_mark_at_the_top_has_no_effect(fmt: Format, tmp_path: Path) -> None:
    upper = make(tmp_path / "1", fmt, "!", "a")
    lower = make(tmp_path / "2", fmt, "b")
    assert view([upper, lower], fmt) == ["/@0", "a@0", "b@1"]


@ALL
def test_a_file_over_a_directory_hides_it(fmt: Format, tmp_path: Path) -> None:
    upper = make(tmp_path / "1", fmt, "d")
    lower = make(tmp_path / "2", fmt, "d/x")
    assert view([upper, lower], fmt) == ["/@0", "d@0"]


def test_no_format_means_no_marks(tmp_path: Path) -> None:
    top = make(tmp_path / "1", AUFS, "-a", "b!")
    os.mknod(top / "c", 0o20000, 0)
    assert view([top], PLAIN) == ["/@0", ".wh.a@0", "b/@0", "b/.wh..wh..opq@0", "c@0"]


def test_a_symbolic_link_to_a_directory_is_not_entered(tmp_path: Path) -> None:
    upper = make(tmp_path / "1", OVERLAY, "d/x")
    lower = make(tmp_path / "2", OVERLAY, "e/y")
    (lower / "d").symlink_to("e")
    assert view([upper, lower], OVERLAY) == ["/@0", "d!@0", "d/x@0", "e/@1", "e/y@1"]


def test_names_that_are_no_text_and_sort_bytewise(tmp_path: Path) -> None:
    for name in (b"\xff", b"\xc3\xa4", b"z", b"\xed\xb0\x80"):
        (tmp_path / os.fsdecode(name)).touch()
    names = [node.name for node in walk([tmp_path], OVERLAY)][1:]
    assert names == sorted([b"\xff", b"\xc3\xa4", b"z", b"\xed\xb0\x80"])


def test_what_goes_away_meanwhile_is_reported_and_left_out(tmp_path: Path) -> None:
    top = make(tmp_path / "1", OVERLAY, "a", "b/", "c")
    vanished: list[bytes] = []
    seen = []
    for node in walk([top], OVERLAY, vanished=vanished.append):
        seen.append(node.path)
        if node.path == b"a":
            (top / "b").rmdir()
            (top / "c").unlink()
    assert (seen, vanished) == ([b"", b"a"], [b"b", b"c"])


def test_an_error_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(walk([tmp_path / "missing"], OVERLAY))


@pytest.mark.parametrize("layers", [1, 3])
def test_ten_thousand_levels_need_few_descriptors(tmp_path: Path, layers: int) -> None:
    depth = 10_000
    with in_memory(tmp_path / "memory") as memory:
        tops = [memory / str(number) for number in range(layers)]
        for number, top in enumerate(tops):
            top.mkdir()
            chain(top, depth - 100 * number, sibling=number == 0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            count = sum(1 for _ in walk(tops, OVERLAY))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for top in tops:
            remove_tree(top)
    assert count == 2 * depth + 1


def test_a_directory_moved_away_below_the_kept_levels_is_an_error(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    chain(top, 80, sibling=True)
    deep = top.joinpath(*["dd"] * 75)
    nodes = walk([top], OVERLAY)
    while next(nodes).depth < 78:
        pass
    deep.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="moved"):
        list(nodes)
