"""Errors as people read them: one line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import click

from lamina.errors import LaminaError


def say(text: str) -> None:
    """``lamina: TEXT`` on stderr, on one line whatever is in it, after what stdout has so far."""
    line = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    for write in (sys.stdout.flush, lambda: print(f"lamina: {line}", file=sys.stderr)):
        try:
            write()
        except OSError:
            pass  # nobody listens


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'pull'?`` where one of the ``known`` words is close; else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def message(error: BaseException) -> str:
    """What to tell a person about an error."""
    if isinstance(error, click.UsageError):
        return _usage(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, LaminaError):
        notes = "; ".join(getattr(error, "__notes__", ()))  # which layer it was, for instance
        return f"{error} ({notes})" if notes else str(error)
    if isinstance(error, OSError) and error.strerror:
        named = isinstance(error.filename, str | bytes | os.PathLike)
        text = f"{os.fsdecode(error.filename)}: {error.strerror}" if named else error.strerror
        notes = "; ".join(getattr(error, "__notes__", ()))
        return f"{text} ({notes})" if notes else text
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"internal error: {type(error).__name__}: {error} ('lamina --debug' shows where)"


_DOCKERS = {
    "-d": "a container runs in the foreground, 'lamina run ... &' in the background of a shell",
    "-p": "the command has this machine's network, and listens on its ports",
    "-m": "limit memory around it, as by systemd-run -p MemoryMax=1G",
    "--platform": "it belongs to 'lamina pull'",
    "--privileged": "a container has no more rights than it needs",
    "--pull": "'lamina pull' fetches an image",
    "--mount": "-v HOST:CTR shows a file or directory of this machine",
    "--restart": "a container runs once, in the foreground",
}
_DOCKERS |= {
    "--detach": _DOCKERS["-d"],
    "--publish": _DOCKERS["-p"],
    "--memory": _DOCKERS["-m"],
    "--cpus": "limit it around it, as by systemd-run -p CPUQuota=50%",
}
"""What to say of options that Docker's or Podman's run has."""


def _is_global(error: click.NoSuchOption) -> bool:
    """Whether it is an option that stands before the verb."""
    top = error.ctx.find_root().command if error.ctx else None
    return any(error.option_name in param.opts for param in top.params) if top else False


def _usage(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "lamina"
    verb = path.partition(" ")[2]
    text = error.format_message().rstrip(".")
    if verb and isinstance(error, click.NoSuchOption) and _is_global(error):
        option = error.option_name
        return f"{verb}: {option} goes before the verb: lamina {option} ... {verb}"
    if verb in ("run", "create") and isinstance(error, click.NoSuchOption):
        name = error.option_name
        if (hint := _DOCKERS.get(name.partition("=")[0])) is not None:
            return f"{verb}: there is no {name}: {hint}"
    if not text[:2].isupper():
        text = text[:1].lower() + text[1:]
    return f"{verb}: {text} (see '{path} --help')" if verb else f"{text} (see '{path} --help')"
