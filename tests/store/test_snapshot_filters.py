"""containerd's filters, as a grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import InvalidSnapshotRequest
from lamina.store.snapshots import Info, Kind
from lamina.store.snapshots.filters import parse_filters

INFO = Info("name", "", Kind.COMMITTED, 1, 1, {"a": "1", "b.c": "x y", 'q"': "2", "e": ""})


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "name", "name==name", " name == name , kind == committed ", "kind!=view",
        "parent!=x", "labels.a", "labels.e", "labels.b.c", 'labels."b.c"=="x y"',
        'labels."q\\""==2', "name~=^n.m", "name~=/am/", "name~=|am|", 'name~="a.e$"',
        "labels.missing!=x", "nothing!=x", 'name=="\\x6eame"',
    ],
)  # fmt: skip
def test_what_holds(text: str) -> None:
    assert parse_filters([text])(INFO)


@pytest.mark.parametrize(
    "text",
    [
        "parent", "name==nam", "name!=name", "kind==Committed", "labels.missing", "labels",
        "name==name,kind==view", "nothing", "nothing==x", "name~=^ame", "labels.e==x",
        'parent==""',
    ],
)  # fmt: skip
def test_what_does_not_hold(text: str) -> None:
    assert not parse_filters([text])(INFO)


def test_one_of_several_is_enough() -> None:
    assert parse_filters(["name==x", "name==name"])(INFO)
    assert not parse_filters(["name==x", "name==y"])(INFO)
    assert parse_filters([])(INFO)


def test_what_is_wrong_is_told_with_its_place() -> None:
    with pytest.raises(InvalidSnapshotRequest, match="expected a value at character 7"):
        parse_filters(["name==,"])
    with pytest.raises(InvalidSnapshotRequest, match="too long"):
        parse_filters(["x" * 20_000])


@given(st.text(alphabet='name=!~,."/|\\ labels()[]*+', max_size=40))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        wanted = parse_filters([text])
    except InvalidSnapshotRequest:
        return
    wanted(INFO)
