"""What the benchmark makes of its figures. How fast anything is, is no matter of a test."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import report
from benchmarks.groups import GROUPS
from benchmarks.measure import Line, compare, in_turn
from benchmarks.report import Group


def line(value: float, limit: float | None, bound: str = "at most") -> Line:
    return Line("a < b", value, 1.0, "peer 1.0", value, limit, bound)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "met", "spent"),
    [
        (line(1.0, 1.15), True, 1.0 / 1.15),
        (line(1.2, 1.15), False, 1.2 / 1.15),
        (line(40, 20, "at least"), True, 0.5),
        (line(10, 20, "at least"), False, 2.0),
        (line(5, None), True, None),
        (line(0, 0), True, 0),
    ],
)
def test_a_line_knows_whether_its_limit_is_kept(
    given: Line, met: bool, spent: float | None
) -> None:
    assert given.met is met
    if spent is None:
        assert given.spent is None
    else:
        assert given.spent is not None
        assert math.isclose(given.spent, spent)


def test_ours_and_the_peer_run_in_turn_after_warming_up() -> None:
    order = []

    def run(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    times = in_turn(2, ours=lambda: run("ours", 1), peer=lambda: run("peer", 2))
    assert order == ["ours", "peer"] * 3
    assert times == {"ours": [1, 1], "peer": [2, 2]}


def test_a_ratio_is_that_of_the_medians() -> None:
    ours, peers = iter([9, 1, 2, 90]), iter([9, 4, 4, 4])
    found = compare(
        "x", lambda: next(ours), lambda: next(peers), "peer", limit=1, rounds=3, unit="ms"
    )
    assert (found.ours, found.peer, found.value) == (2000, 4000, 0.5)


def test_table_and_plot_are_made_of_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    Group("one", "2030-01-01", "a machine", 5, [line(1.0, 1.15), line(3.0, 1.15)]).save()
    Group("two", "2030-01-01", "a machine", 5, [line(40, 20, "at least"), line(5, None)]).save()
    report.write(["one", "absent", "two"])
    table = (tmp_path / "table.md").read_text()
    assert table.count("a machine. 2030-01-01, medians of 5 (one, two).") == 1
    assert table.count("| a < b |") == 4
    assert table.count("**no**") == 1
    drawing = ElementTree.fromstring((tmp_path / "plot.svg").read_text())
    bars = [node for node in drawing.iter() if node.get("fill") in ("#3a7d44", "#c0392b")]
    assert [bar.get("fill") for bar in bars] == ["#3a7d44", "#c0392b", "#3a7d44"]


def test_every_group_can_be_imported() -> None:
    for module in GROUPS.values():
        assert hasattr(__import__(module, fromlist=["lines"]), "lines")
