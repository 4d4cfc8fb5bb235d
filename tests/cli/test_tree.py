"""The tree of changes: what is shown one by one, and what only as a sum."""

from __future__ import annotations

import pytest

from lamina.archive.changes import Change, Kind
from lamina.cli import tree


def added(*paths: bytes) -> list[Change]:
    return [Change(path, Kind.ADDED) for path in paths]


def test_sizes_and_counts_add_up_to_the_top() -> None:
    changes = [Change(b"/etc", Kind.MODIFIED), *added(b"/etc/a", b"/etc/d", b"/etc/d/b")]
    top = tree.grow(changes, {b"/etc/a": 5, b"/etc/d/b": 7})
    etc = top.children[b"etc"]
    assert (top.below, top.bytes) == (4, 12)
    assert (etc.below, etc.bytes, etc.kind) == (3, 12, Kind.MODIFIED)
    assert (etc.children[b"a"].bytes, etc.children[b"d"].bytes) == (5, 7)


def test_a_large_directory_is_folded_into_its_sum(capsys: pytest.CaptureFixture[str]) -> None:
    many = [b"/big/%03d" % n for n in range(100)]
    changes = added(b"/big", *many, b"/small", b"/small/one", b"/small/\xff\x1b")
    tree.print_changes(changes, dict.fromkeys(many, 1000) | {b"/small/one": 3})
    shown = capsys.readouterr().err
    assert "A big/  100 more, 100kB" in shown
    assert "A one  3B" in shown
    assert "A \\xff\\x1b" in shown or "A \\udcff\\x1b" in shown
    assert "000" not in shown
    assert "104 added; 100kB in files" in shown


def test_directories_that_only_lead_to_one_other_take_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ways = [Change(path, Kind.MODIFIED) for path in (b"/usr", b"/usr/share", b"/usr/share/doc")]
    tree.print_changes([*ways, *added(b"/usr/share/doc/one", b"/usr/share/doc/one/file")], {})
    assert "── usr/share/doc/\n" in capsys.readouterr().err
