"""Progress bars for a person who waits."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lamina.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID

_PATIENCE = 0.4
"""Seconds of work that are not worth a bar, nor the import of what draws it."""

_DAY = 24 * 3600
_BAR = 20
_NUMBERS = 46
"""Columns of a terminal that amount, rate and time take, with what is between them."""


class Bars:
    """A progress callback that draws on stderr, one line for each piece of work."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._display: Display | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def __call__(self, progress: Progress) -> None:
        """Take note of a report."""
        if self._display is None:
            now = time.monotonic()
            self._begun = self._begun or now
            if now - self._begun < _PATIENCE:
                return
            self._display = _display()
            self._display.start()
        task = self._tasks.get(progress.what)
        if task is None:
            what = _short(progress.what, self._display.console.width - _NUMBERS - _BAR)
            task = self._display.add_task(what, total=progress.total, unit=progress.unit)
            self._tasks[progress.what] = task
        self._display.update(task, completed=progress.done, total=progress.total)


def _display() -> Display:
    """Bars that vanish when the work is done: what stays on the screen is the result."""
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Column
    from rich.text import Text

    def shown(task: rich_progress.Task, count: float) -> str:
        return decimal(int(count)) if task.fields["unit"] == "bytes" else f"{int(count):,}"

    class Amount(rich_progress.ProgressColumn):
        """``12.3 MB of 270 MB``, or entries."""

        def render(self, task: rich_progress.Task) -> Text:
            total = "" if task.total is None else f" of {shown(task, task.total)}"
            return Text(f"{shown(task, task.completed)}{total}")

    class Rate(rich_progress.ProgressColumn):
        """``12.3 MB/s``."""

        def render(self, task: rich_progress.Task) -> Text:
            return Text("" if task.speed is None else f"{shown(task, task.speed)}/s")

    class Left(rich_progress.ProgressColumn):
        """``1:23 left``; nothing where it can't be told, or is so long that nobody believes it."""

        def render(self, task: rich_progress.Task) -> Text:
            return Text(_left(task.time_remaining))

    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        rich_progress.BarColumn(_BAR),
        Amount(Column(no_wrap=True)),
        Rate(Column(no_wrap=True)),
        Left(Column(no_wrap=True)),
        console=Console(stderr=True),
        transient=True,
    )


def _short(text: str, width: int) -> str:
    """``text`` in so many columns, but at least 16, with its beginning and its end."""
    width = max(width, 16)
    if len(text) <= width:
        return text
    end = (width - 3) // 2
    return f"{text[: width - 3 - end]}...{text[-end:]}"


def _left(seconds: float | None) -> str:
    if seconds is None or seconds > _DAY:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
