"""Waits grow, are bounded, and take account of what a registry asks for."""

from __future__ import annotations

import email.utils
import time

import pytest

from lamina.oci.registry import Retries
from lamina.oci.registry.retry import Attempts, retry_after


def waits(retries: Retries, **options: object) -> list[float]:
    attempts = Attempts(retries)
    return [*iter(lambda: attempts.next(**options), None)]  # type: ignore[arg-type]


def test_waits_double_and_are_shortened_by_chance() -> None:
    retries = Retries(tries=7, first=1, longest=8, total=1000)
    for _ in range(20):
        found = waits(retries)
        for wait, most in zip(found, [1, 2, 4, 8, 8, 8], strict=True):
            assert most / 2 <= wait <= most
    assert len({tuple(waits(retries)) for _ in range(5)}) == 5


def test_all_waits_together_are_bounded() -> None:
    assert sum(waits(Retries(tries=100, first=1, longest=10, total=30))) <= 30


def test_a_connection_that_is_not_made_is_tried_fewer_times() -> None:
    assert len(waits(Retries(tries=6, connects=3), connected=False)) == 2


def test_what_the_registry_asks_for_counts_where_it_is_longer() -> None:
    assert Attempts(Retries(first=1)).next(7.5) == 7.5
    assert Attempts(Retries(first=1)).next(0.0) != 0.0
    assert Attempts(Retries(total=5)).next(7.5) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), ("", None), ("7", 7.0), (" 120 ", 120.0), ("-1", None), ("soon", None),
     ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0), ("9" * 400, 999_999_999.0), ("٣", None)],
)  # fmt: skip
def test_retry_after_is_read(value: str | None, expected: float | None) -> None:
    assert retry_after(value) == expected


def test_retry_after_may_be_a_date() -> None:
    found = retry_after(email.utils.formatdate(time.time() + 60, usegmt=True))
    assert found is not None
    assert 55 < found <= 60
