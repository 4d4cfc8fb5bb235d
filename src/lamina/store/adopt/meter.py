"""Counting bytes against what was reckoned with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lamina.progress import Progress, ProgressCallback


class Meter:
    """Reports how much of ``total`` bytes is done, part by part.

    What a part comes to is known beforehand only about (Docker's count of a layer's files, say):
    within it the count never passes what was reckoned, and at its end it is that.
    """

    def __init__(self, what: str, total: int, report: ProgressCallback | None) -> None:
        self._what = what
        self._total = total
        self._report = report
        self._done = 0
        self._limit = total

    @contextmanager
    def part(self, size: int) -> Iterator[None]:
        """A part of ``size`` bytes is done within the block, whether it succeeds or not."""
        self._limit = min(self._done + size, self._total)
        self.add(0)
        try:
            yield
        finally:
            self._done = self._limit
        self.add(0)

    def add(self, size: int) -> None:
        """So many bytes more."""
        self._done = min(self._done + size, self._limit)
        if self._report is not None:
            self._report(Progress(self._what, self._done, self._total, "bytes"))

    def finish(self) -> None:
        """That was all of it."""
        self._limit = self._total
        self.add(self._total)
