"""The life of a server: signals that end it, and a log of what happens.

The log is one line a message, as logfmt: ``time=... level=info msg="..." key=value``.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """An event that a signal's handler may set, also while its own thread waits for it.

    A :class:`threading.Event` can't be: its lock may be the waiting thread's at that moment, and
    the handler, which runs in that thread, would wait for it for ever.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def set(self) -> None:
        """Let :meth:`wait` return, now and from now on."""
        try:
            os.write(self._write, b".")
        except BlockingIOError:
            pass  # set very often

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, by default without end; whether it is."""
        return bool(select.select([self._read], [], [], seconds)[0])

    def is_set(self) -> bool:
        """Whether it is set."""
        return self.wait(0)

    def close(self) -> None:
        """Give up the pipe."""
        os.close(self._read)
        os.close(self._write)


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """What SIGINT and SIGTERM set within the block. In the main thread only."""
    with closing(Stop()) as stop:

        def told(_number: int, _frame: FrameType | None) -> None:
            stop.set()

        before = {number: signal.signal(number, told) for number in _STOPPING}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def log_to_stderr(*, debug: bool) -> None:
    """Write what is logged to stderr, from INFO on, or all of it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Logfmt())
    logger = logging.getLogger("lamina")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


class Logfmt(logging.Formatter):
    """One line a record, its traceback too: ``key=value`` pairs, values quoted where need be.

    More pairs are taken from the attribute ``fields`` of a record (``extra={"fields": {...}}``).
    """

    def format(self, record: logging.LogRecord) -> str:
        """See :meth:`logging.Formatter.format`."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        pairs: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        line = " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())
        if record.exc_info:
            line += f" trace={_in_quotes(self.formatException(record.exc_info))}"
        return line


def _quoted(value: object) -> str:
    text = f"{value:.6f}" if isinstance(value, float) else str(value)
    if text and text.isprintable() and not any(c in ' "=\\' for c in text):
        return text
    return _in_quotes(text)


def _in_quotes(text: str) -> str:
    """Any text, all of it, on one line: what is in it may be a client's."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped)
    return f'"{"".join(shown)}"'
