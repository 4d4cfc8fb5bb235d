"""What a server does with signals, and how its log reads."""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

import pytest

from lamina.errors import printable
from lamina.serve.life import Logfmt, stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stopped_by_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
    assert signal.getsignal(number) == before


def test_a_signal_at_any_line_of_waiting_stops_it() -> None:
    """Its handler runs in the thread that waits."""
    for number in range(1, 60):
        lines = 0

        def trace(frame: FrameType, event: str, _: object, at: int = number) -> Any:
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == at:
                    os.kill(os.getpid(), signal.SIGTERM)
            return trace

        with stopped_by_signals() as stop:
            sys.settrace(trace)
            try:
                stop.wait(0.001)
            finally:
                sys.settrace(None)
            if lines < number:  # past its end
                return
            assert stop.is_set()


def line(text: str, **fields: object) -> str:
    record = logging.LogRecord("lamina.x", logging.INFO, "", 0, text, (), None)
    record.fields = fields
    return Logfmt().format(record)


def test_a_message_is_one_line_of_pairs() -> None:
    shown = line("call", method="Prepare", key="default/1/extract a\nb", seconds=0.25, empty="")
    assert shown.startswith("time=2")
    assert shown.partition("Z ")[2] == (
        'level=info msg=call method=Prepare key="default/1/extract a\\nb" seconds=0.250000 empty=""'
    )


def test_quotes_are_escaped() -> None:
    assert line('a "b"').endswith('msg="a \\"b\\""')


def test_a_traceback_is_on_the_line_too() -> None:
    try:
        raise ValueError('evil\nlevel=error msg="forged"\x1b[0m\ud800')
    except ValueError:
        record = logging.LogRecord("lamina", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    shown = Logfmt().format(record)
    assert shown.isprintable()
    assert ' trace="Traceback' in shown
    assert 'ValueError: evil\\nlevel=error msg=\\"forged\\"\\x1b[0m\\ud800"' in shown


def test_what_was_cut_short_is_shown_as_it_is() -> None:
    shown = printable("x" * 100_000)
    assert line("call", key=shown).endswith(f'key="{shown}"')
