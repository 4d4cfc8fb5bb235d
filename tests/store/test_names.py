from __future__ import annotations

import re

import pytest

from lamina.errors import InvalidName
from lamina.store.names import check_name, made_up, new_id


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".a", "-a", "a\0", "a\n", "ä", "a b", "a" * 129, "0" * 64, "a:b"]
)
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="container"):
        check_name(name, "container")


@pytest.mark.parametrize("name", ["a", "web-1", "x.y_z", "0", "f" * 63, "A" * 128])
def test_plain_names_are_taken(name: str) -> None:
    assert check_name(name, "container") == name


def test_made_up_names_are_names() -> None:
    assert all(re.fullmatch("[a-z]+_[a-z]+", check_name(made_up(), "x")) for _ in range(100))


def test_ids_are_64_hex_digits() -> None:
    assert re.fullmatch("[0-9a-f]{64}", new_id())
