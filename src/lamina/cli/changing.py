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
    for text in instructions:
        word, _, rest = text.strip().partition(" ")
        apply = _INSTRUCTIONS.get(word.upper())
        if apply is None or not rest.strip():
            known = ", ".join(_INSTRUCTIONS)
            raise click.UsageError(f"--change takes one of {known} and its words, not '{text}'")
        apply(run, rest.strip())
    return run


def _command(text: str) -> list[str]:
    """A list in JSON, or a line for the shell."""
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            words = None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise click.UsageError(f"--change: not a JSON list of strings: {text}")
        return words
    return ["/bin/sh", "-c", text]


def _words(text: str) -> list[str]:
    if text.startswith("["):
        return _command(text)
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
    run.cmd = _command(text)


def _entrypoint(run: RunConfig, text: str) -> None:
    run.entrypoint = _command(text)


def _env(run: RunConfig, text: str) -> None:
    for name, value in _pairs(text).items():
        others = [item for item in run.env or () if item.partition("=")[0] != name]
        run.env = [*others, f"{name}={value}"]


def _label(run: RunConfig, text: str) -> None:
    run.labels = {**(run.labels or {}), **_pairs(text)}


def _user(run: RunConfig, text: str) -> None:
    run.user = text


def _workdir(run: RunConfig, text: str) -> None:
    run.working_dir = text if text.startswith("/") else f"{run.working_dir.rstrip('/')}/{text}"


def _expose(run: RunConfig, text: str) -> None:
    ports = [port if "/" in port else f"{port}/tcp" for port in _words(text)]
    run.exposed_ports = {**(run.exposed_ports or {}), **{port: {} for port in ports}}


def _volume(run: RunConfig, text: str) -> None:
    run.volumes = {**(run.volumes or {}), **{path: {} for path in _words(text)}}


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
