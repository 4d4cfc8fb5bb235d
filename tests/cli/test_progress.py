"""Progress bars: after a while, on stderr, gone at the end."""

from __future__ import annotations

import sys

import pytest

from lamina.cli import progress
from lamina.progress import Progress


def test_short_work_draws_nothing_and_imports_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.Bars() as bars:
        bars(Progress("importing", 0, 10, "bytes"))
        bars(Progress("importing", 10, 10, "bytes"))
    assert capsys.readouterr() == ("", "")


def test_long_work_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.Bars() as bars:
        bars(Progress("importing x.tar", 1_000_000, 20_000_000, "bytes"))
        bars(Progress("importing x.tar", 5_000_000, 20_000_000, "bytes"))
        bars(Progress("counting", 1234, None, "entries"))
    shown = capsys.readouterr().err
    assert "importing x.tar" in shown
    assert "5.0 MB of 20.0 MB" in shown
    assert "1,234" in shown
    assert "rich.progress" in sys.modules


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, ""), (0, "0:00 left"), (83.4, "1:23 left"), (7384, "2:03:04 left"), (90_000, "")],
)
def test_the_time_left_is_shown_as_far_as_it_can_be_believed(
    seconds: float | None, shown: str
) -> None:
    assert progress._left(seconds) == shown


def test_a_long_text_keeps_its_ends() -> None:
    text = "pulling registry.example:5000/a/very/long/name:12"
    assert progress._short(text, 100) == text
    short = progress._short(text, 30)
    assert len(short) == 30
    assert short.startswith("pulling regis")
    assert short.endswith("name:12")
    assert len(progress._short(text, 3)) == 16
