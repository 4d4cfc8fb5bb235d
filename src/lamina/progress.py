"""How long work tells its caller how far it is: one record, one callback type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple


class Progress(NamedTuple):
    """How far a piece of work has come.

    ``what`` is a short text for a person ("importing debian.tar"); the same piece of work
    keeps the same text. ``total`` is None where it can't be known (a pipe).
    """

    what: str
    done: int
    total: int | None
    unit: Literal["bytes", "entries"]


ProgressCallback = Callable[[Progress], None]
"""Called from the thread that does the work, at most a few times a MiB; must not block long.

An exception that it raises ends the work as an error would.
"""
