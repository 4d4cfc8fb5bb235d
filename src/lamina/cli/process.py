"""From arguments to an exit status: signals, errors, a pipe whose reader is gone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

from lamina.cli.app import COMPLETION_VARIABLE, VERBS, lamina
from lamina.cli.messages import message, say
from lamina.errors import CommandNotFound

USAGE = 2
"""Exit status of a command line that can't be understood."""

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal to end. Unwinds like any error, so that everything begun is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(arguments: Sequence[str]) -> int:
    """Do what a command line says; its exit status. Never raises."""
    context = None
    try:
        with _stoppable():
            if COMPLETION_VARIABLE in os.environ:
                return _complete(os.environ[COMPLETION_VARIABLE])
            context = lamina.make_context("lamina", list(arguments))
            with context:
                status = lamina.invoke(context)
            sys.stdout.flush()
            return status or 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except BaseException as error:
        return _failed(error, context)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let INT, TERM and HUP raise :class:`Stopped`, except those that we were told to ignore."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {n: signal.signal(n, stop) for n in _heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard() -> list[signal.Signals]:
    return [n for n in _STOPPING if signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def finishing(what: str) -> Iterator[None]:
    """Work that must not be left half done: INT, TERM and HUP are answered, and change nothing."""

    def answer(_number: int, _frame: FrameType | None) -> None:
        try:
            os.write(2, f"lamina: {what}: can't stop halfway\n".encode())
        except OSError:
            pass  # nobody listens

    before = {n: signal.signal(n, answer) for n in _heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complete(instruction: str) -> int:
    from click.shell_completion import shell_complete

    return shell_complete(lamina, {}, "lamina", COMPLETION_VARIABLE, instruction)


def _failed(error: BaseException, context: click.Context | None) -> int:
    """Say what went wrong; the exit status for it."""
    if isinstance(error, BrokenPipeError) and _is_reader_gone():
        return 128 + signal.SIGPIPE
    if context is not None and context.params.get("debug"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Stopped | click.Abort | KeyboardInterrupt):
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        said = "interrupted" if number == signal.SIGINT else "ended by a signal"
        say("; ".join([said, *getattr(error, "__notes__", ())]))
        return 128 + number
    _let_go_of_output()
    say(message(error))
    verb = VERBS.get((context and context.invoked_subcommand) or "")
    if isinstance(error, CommandNotFound):
        return error.exit_code
    if verb is not None and verb.passes_status:
        return 125
    return USAGE if isinstance(error, click.UsageError) else 1


def _is_reader_gone() -> bool:
    """Whether it is our own output that nobody reads any more; then none is left to be flushed."""
    import select

    poll = select.poll()
    poll.register(1, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    _forget_output()
    return True


def _let_go_of_output() -> None:
    """Write what is left of it; if that fails, see that the interpreter does not try again."""
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()


def _forget_output() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
