"""Sizes, ages and names as people read them."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from lamina.cli import output
from tests.cli.conftest import Cli


@pytest.mark.root
def test_images_of_a_name_are_listed_by_that_name_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    cli("import", tmp_path / "tree", "one")
    cli("tag", "one", "two:2")
    for name, row in {"one": "one latest", "two": "two 2", "two:2": "two 2"}.items():
        _, *rows = (" ".join(line.split()[:2]) for line in cli("images", name).splitlines())
        assert rows == [row]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0B"), (999, "999B"), (1000, "1kB"), (1024, "1.02kB"), (999_499, "999kB"),
        (999_500, "1MB"), (3_679_179, "3.68MB"), (272_600_000, "273MB"), (1_500_000_000, "1.5GB"),
        (10**18, "1e+03PB"),
    ],
)  # fmt: skip
def test_sizes_have_three_digits(count: int, shown: str) -> None:
    assert output.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "just now"), (0.5, "just now"), (1, "1 second ago"), (59, "59 seconds ago"),
        (60, "1 minute ago"), (7_200, "2 hours ago"), (86_400, "1 day ago"),
        (7 * 86_400, "1 week ago"), (70 * 86_400, "2 months ago"), (800 * 86_400, "2 years ago"),
    ],
)  # fmt: skip
def test_ages_have_one_unit(seconds: float, shown: str) -> None:
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    assert output.age(then) == shown


def test_times_are_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    moment = datetime.datetime(2024, 5, 1, 12, 0, 0, 999, tzinfo=zone)
    assert output.time(moment) == "2024-05-01T10:00:00Z"


def test_ids_are_cut_to_twelve_digits() -> None:
    assert output.short("sha256:" + "0123456789abcdef" * 4) == "0123456789ab"
    assert output.short("sha256:" + "ab" * 32, whole=True) == "sha256:" + "ab" * 32


def test_columns_are_aligned(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output.print_table(["A", "LONG"], [["wide cell", "x"], ["b", ""]])
    assert capfdbinary.readouterr().out == b"A           LONG\nwide cell   x\nb\n"


def test_names_that_are_not_utf8_come_out_as_they_are(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    output.write_line(b"A /\xff\x1b[31m")
    assert capfdbinary.readouterr().out == b"A /\xff\x1b[31m\n"
