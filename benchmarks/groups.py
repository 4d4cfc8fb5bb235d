"""The groups of lines, by name. A group's module is imported when it is run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from benchmarks.ground import Ground
from benchmarks.measure import Line

GROUPS = {
    "unpack": "benchmarks.unpack",
    "container": "benchmarks.container",
    "changes": "benchmarks.changes",
    "run": "benchmarks.run",
    "images": "benchmarks.images",
    "erofs": "benchmarks.erofs",
    "adopt": "benchmarks.adopt",
    "servers": "benchmarks.servers",
    "startup": "benchmarks.startup",
}


def lines(group: str, ground: Ground, rounds: int) -> Iterator[Line]:
    """Measure a group's lines, one after the other."""
    found: Iterator[Line] = importlib.import_module(GROUPS[group]).lines(ground, rounds)
    return found
