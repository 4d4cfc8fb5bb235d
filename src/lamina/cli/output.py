"""Tables, JSON, sizes and ages: how results look on stdout."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

format_option = click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True,
    help="How the list looks.",
)  # fmt: skip
no_trunc_option = click.option("--no-trunc", is_flag=True, help="Show whole ids and commands.")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns, aligned, three spaces apart, under a heading."""
    table = [list(head), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        write_line("   ".join(cells).rstrip())


def print_json(value: object) -> None:
    """Indented JSON in ASCII; bytes of a name that are no UTF-8 as lone surrogates ``\\udcXX``."""
    print(json.dumps(value, indent=2))


def write_line(text: str | bytes) -> None:
    """A line to stdout, bytes of names as they are; on a terminal, control characters escaped."""
    data = os.fsencode(text)
    if sys.stdout.isatty():
        text = os.fsdecode(data).encode("utf-8", "backslashreplace").decode()
        data = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).encode()
    sys.stdout.flush()
    sys.stdout.buffer.write(data + b"\n")


def count(number: int, what: str, several: str | None = None) -> str:
    """``1 image``, ``2 images``."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def size(count: int) -> str:
    """``1.24GB``: three digits, decimal units, as Docker shows sizes."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}PB"


_SPANS = ((60, "second"), (60, "minute"), (24, "hour"), (7, "day"), (4.35, "week"), (12, "month"))


def age(moment: datetime.datetime) -> str:
    """``3 hours ago``."""
    now = datetime.datetime.now(datetime.UTC)
    value = max(0.0, (now - moment).total_seconds())
    for limit, unit in _SPANS:
        if value < limit:
            return _ago(int(value), unit)
        value /= limit
    return _ago(int(value), "year")


def _ago(count: int, unit: str) -> str:
    if count == 0:
        return "just now"
    return f"{count} {unit}{'s' if count != 1 else ''} ago"


def time(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC, as JSON has it."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def short(id: str, *, whole: bool = False) -> str:
    """Twelve digits of an id; all of it with ``whole``."""
    return id if whole else id.removeprefix("sha256:")[:12]
