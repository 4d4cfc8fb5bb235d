"""``WWW-Authenticate`` is read as RFC 9110 has it, whatever stands there."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.oci.registry.challenge import Challenge, parse_challenges

BEARER = Challenge("bearer", {"realm": "https://auth.example/token", "service": "a, b"})
PARAMETERS = 'realm="https://auth.example/token",service="a, b"'


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        ([""], []),
        ([f"Bearer {PARAMETERS}"], [BEARER]),
        ([f"bEARER   {PARAMETERS.replace(',', ' , ', 1)}"], [BEARER]),
        (["Basic"], [Challenge("basic")]),
        (['Basic realm="x"', f"Bearer {PARAMETERS}"], [Challenge("basic", {"realm": "x"}), BEARER]),
        ([f'Basic realm="x", Bearer {PARAMETERS}'], [Challenge("basic", {"realm": "x"}), BEARER]),
        ([f"Negotiate, Bearer {PARAMETERS}"], [Challenge("negotiate"), BEARER]),
        ([f"Negotiate YWJj==, Bearer {PARAMETERS}"], [Challenge("negotiate"), BEARER]),
        ([f",, Bearer {PARAMETERS},"], [BEARER]),
        (['Basic Realm=bare, charset = "UTF-8"'],
         [Challenge("basic", {"realm": "bare", "charset": "UTF-8"})]),
        ([r'Basic realm="a \"b\" \\ c"'], [Challenge("basic", {"realm": 'a "b" \\ c'})]),
        (['Bearer realm="a",realm="b"'], [Challenge("bearer", {"realm": "a"})]),
        (['Bearer realm="a,scope=x'], [Challenge("bearer")]),
        (['Bearer realm="a";x'], [Challenge("bearer")]),
    ],
)  # fmt: skip
def test_challenges_are_told_apart(headers: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(headers) == expected


@given(st.text(alphabet=' ,="\\ab;:/=\t~é', max_size=80))
def test_anything_can_be_read(header: str) -> None:
    for challenge in parse_challenges([header]):
        assert challenge.scheme == challenge.scheme.lower() != ""


def test_a_long_header_takes_no_long_time() -> None:
    start = time.monotonic()
    for piece in ('"', "a=", 'a="\\', ", ", " ", "a b "):
        parse_challenges([f"Bearer {piece * 20_000}", piece * 20_000])
    assert time.monotonic() - start < 2
