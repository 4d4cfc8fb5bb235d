"""containerd's filters, as a grammar."""

from __future__ import annotations

import sys

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
        "labels.missing!=x", "nothing!=x", 'name=="\\x6eame"', 'parent==""',
        r"name~=/^[[:alpha:]]+\z/", r"name~=/\pL/", "name~=/(?i)NAME/",
    ],
)  # fmt: skip
def test_what_holds(text: str) -> None:
    assert parse_filters([text])(INFO)


@pytest.mark.parametrize(
    "text",
    [
        "parent", "name==nam", "name!=name", "kind==Committed", "labels.missing", "labels",
        "name==name,kind==view", "nothing", "nothing==x", "name~=^ame", "labels.e==x",
        'labels.missing==""',
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


@pytest.mark.parametrize("wrong", ["(", "(?=a)", r"(a)\1", "a**", "[z-a]", "((a{999}){999}){999}"])
def test_an_expression_that_can_not_be_one(wrong: str) -> None:
    with pytest.raises(InvalidSnapshotRequest, match="not a regular expression"):
        parse_filters([f"name~=/{wrong}/"])


def test_no_expression_takes_longer_than_what_it_is_looked_for_in() -> None:
    long = INFO._replace(name="a" * 32_000)
    for text in ("^(a+)+$b", "(a|aa)+$b", "a*a*a*a*a*a*b", "(.*)(.*)(.*)(.*)(.*)[^a]"):
        assert not parse_filters([f"name~=/{text}/"])(long)


def test_without_its_package_an_expression_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(InvalidSnapshotRequest, match="google-re2"):
        parse_filters(["name~=a"])
    assert parse_filters(["name==name"])(INFO)


@given(st.text(alphabet='name=!~,."/|\\ labels()[]*+', max_size=40))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        wanted = parse_filters([text])
    except InvalidSnapshotRequest:
        return
    wanted(INFO)
