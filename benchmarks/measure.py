"""How a line of the table comes about.

Ours and the peer run in turn, each into a fresh target on the same journaled ext4 (see
:mod:`benchmarks.ground`), with everything synced before each run. A figure is the median of the
runs (five or more), a ratio that of the two medians. Only the peer of the same run counts: on a
shared machine seconds of another day say nothing.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

ROUNDS = 5

Run = Callable[[], float]
"""Does the work once, on a target of its own; the seconds that counted."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: two medians, what is made of them, and what that should be."""

    what: str
    ours: float
    peer: float
    peer_name: str
    """What it is compared with, and its version."""
    value: float
    """Usually ours / peer."""
    limit: float | None
    """What ``value`` should be at most or at least; None: for information."""
    bound: Literal["at most", "at least"] = "at most"
    unit: Literal["s", "ms", "us", "MiB", "/s", ""] = "s"
    """Of ``ours`` and ``peer``."""
    suffix: str = "x"
    """Of ``value`` and ``limit``."""
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the limit is kept."""
        if self.limit is None:
            return True
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit

    @property
    def spent(self) -> float | None:
        """How much of the limit was used up: 1 is just kept, less is better."""
        if self.limit is None:
            return None
        if not self.limit:
            return 0 if self.met else 2
        return self.value / self.limit if self.bound == "at most" else self.limit / self.value

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes, begun with nothing left to be written."""
    os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(rounds: int, **runs: Run) -> dict[str, list[float]]:
    """Run each of ``runs`` once a round, and once before to warm up; the times of each."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run())
    return times


def compare(
    what: str,
    ours: Run,
    peer: Run,
    peer_name: str,
    *,
    limit: float | None,
    rounds: int = ROUNDS,
    unit: Literal["s", "ms", "us"] = "s",
) -> Line:
    """A line whose value is ours / peer."""
    times = in_turn(rounds, ours=ours, peer=peer)
    scale = {"s": 1, "ms": 1e3, "us": 1e6}[unit]
    mine, theirs = (statistics.median(times[name]) * scale for name in ("ours", "peer"))
    return Line(what, mine, theirs, peer_name, mine / theirs, limit, unit=unit, samples=times)


def beside_best(
    ours: Mapping[str, tuple[str, float | None]],
    peers: Mapping[str, str],
    times: Mapping[str, list[float]],
) -> Iterator[Line]:
    """A line for each of ours, beside the quickest of the peers; the others are named in it.

    ``ours`` has what a line is called and its limit, ``peers`` has names with versions, both by
    their keys in ``times``, which are seconds.
    """
    medians = {name: statistics.median(values) for name, values in times.items()}
    first, *others = sorted(peers, key=lambda name: medians[name])
    named = "; ".join([peers[first], *(f"{peers[n]}: {medians[n]:.3g} s" for n in others)])
    for key, (what, limit) in ours.items():
        mine, theirs = medians[key], medians[first]
        samples = {name: times[name] for name in (key, *peers)}
        yield Line(what, mine, theirs, named, mine / theirs, limit, samples=samples)
