"""``--change``: instructions as in a Dockerfile, which say how an image is run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lamina.oci import ImageConfig, RunConfig

change_option = click.option(
    "-c", "--change", "changes", metavar="INSTRUCTION", multiple=True,
    help='How the image is run, as in a Dockerfile: CMD ["sh"], ENV A=1, USER, WORKDIR, '
    "ENTRYPOINT, LABEL, EXPOSE, VOLUME, STOPSIGNAL.",
)  # fmt: skip


def changed(config: ImageConfig | None, instructions: Iterable[str]) -> RunConfig | None:
    """How an image of ``config`` is run after the instructions; None if there are none."""
    instructions = list(instructions)
    if not instructions:
        return None
    from lamina.oci import RunConfig

    run = (config.copy().config if config is not None else None) or RunConfig()
    apply(run, instructions)
    return run


def apply(run: RunConfig, instructions: Iterable[str]) -> None:
    """Change ``run`` as the instructions say."""
    for text in instructions:
        word, _, rest = text.strip().partition(" ")
        change = _INSTRUCTIONS.get(word.upper())
        if change is None or not rest.strip():
            known = ", ".join(_INSTRUCTIONS)
            raise click.UsageError(f"--change takes one of {known} and its words, not '{text}'")
        change(run, rest.strip())


def command_words(text: str, option: str = "--change") -> list[str]:
    """A list in JSON, or a line for the shell; ``option`` is where it is from."""
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            words = None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise click.UsageError(f"{option}: not a JSON list of strings: {text}")
        return words
    return ["/bin/sh", "-c", text]


def _words(text: str) -> list[str]:
    if text.startswith("["):
        return command_words(text)
    try:
        return shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"--change: {str(error).lower()}: {text}") from error


def _pairs(text: str) -> dict[str, str]:
    """``A=1 B=2``, or the old ``A the rest``."""
    words = _words(text)
    if words and "=" not in words[0]:
        name, _, value = text.partition(" ")
        return {name: value.strip()}
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise click.UsageError(f"--change: not NAME=VALUE: {word}")
        pairs[name] = value
    return pairs


def _cmd(run: RunConfig, text: str) -> None:
    run.cmd = command_words(text)


def _entrypoint(run: RunConfig, text: str) -> None:
    run.entrypoint = command_words(text)


def _env(run: RunConfig, text: str) -> None:
    for name, value in _pairs(text).items():
        run.set_env(name, value)


def _label(run: RunConfig, text: str) -> None:
    run.set_labels(_pairs(text))


def _user(run: RunConfig, text: str) -> None:
    run.user = text


def _workdir(run: RunConfig, text: str) -> None:
    run.set_working_dir(text)


def _expose(run: RunConfig, text: str) -> None:
    run.add_ports(_words(text))


def _volume(run: RunConfig, text: str) -> None:
    run.add_volumes(_words(text))


def _stop_signal(run: RunConfig, text: str) -> None:
    run.stop_signal = text


_INSTRUCTIONS: dict[str, Callable[[RunConfig, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "LABEL": _label,
    "USER": _user,
    "WORKDIR": _workdir,
    "EXPOSE": _expose,
    "VOLUME": _volume,
    "STOPSIGNAL": _stop_signal,
}
