"""``lamina ps``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import click

from lamina.cli import output
from lamina.cli.session import Session
from lamina.cli.settings import pairs
from lamina.errors import ContainerNotFound

if TYPE_CHECKING:
    from lamina.store import Container

_Thing = TypeVar("_Thing")
_Answer = TypeVar("_Answer")

_FILTERS = {"name", "status", "ancestor"}
_ACTIVE = ("running", "mounted")


@click.command()
@click.option("-a", "--all", "all_", is_flag=True, help="Also those that are not in use.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.option("-s", "--size", is_flag=True, help="Also measure what each has written.")
@click.option("-f", "--filter", "filters", metavar="KEY=VALUE", multiple=True,
              help="Only those with name=TEXT in it, status=STATE or ancestor=IMAGE.")  # fmt: skip
@output.no_trunc_option
@output.format_option
@click.pass_obj
def command(
    session: Session,
    all_: bool,
    quiet: bool,
    size: bool,
    filters: tuple[str, ...],
    no_trunc: bool,
    form: str,
) -> None:
    """List containers.

    Newest first; those that run or are mounted, or with -a all.

    \b
    Examples:
      lamina ps -a
      lamina ps -aq -f status=exited | xargs lamina rm
    """
    wanted = pairs(filters, "--filter")
    if unknown := wanted.keys() - _FILTERS:
        known = ", ".join(sorted(_FILTERS))
        raise click.UsageError(f"--filter knows {known}, not '{min(unknown)}'")
    all_ = all_ or "status" in wanted
    with session.store() as store:
        base = store.image(wanted["ancestor"]) if "ancestor" in wanted else None
        named = (
            box
            for box in store.containers
            if wanted.get("name", "") in box.name and (base is None or box.image == base)
        )
        found = [
            (box, state)
            for box, state in _answers(named, lambda box: (box, str(box.state)))
            if (all_ or state in _ACTIVE) and wanted.get("status", state) == state
        ]
        if form == "json":
            output.print_json(_answers(found, lambda one: _described(*one, size)))
        elif quiet:
            for box, _ in found:
                output.write_line(output.short(box.id, whole=no_trunc))
        else:
            head = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"]
            if size:
                head.append("SIZE")
            output.print_table(head, _answers(found, lambda one: _row(*one, no_trunc, size)))


def _answers(things: Iterable[_Thing], ask: Callable[[_Thing], _Answer]) -> list[_Answer]:
    """What is told about each container that nobody removes meanwhile."""
    found = []
    for thing in things:
        with suppress(ContainerNotFound):
            found.append(ask(thing))
    return found


def _row(box: Container, state: str, no_trunc: bool, size: bool) -> list[str]:
    command = shlex.join(box.command)
    if len(command) > (limit := _command_width()) and not no_trunc:
        command = f"{command[: limit - 3]}..."
    if state == "exited" and box.exit_code is not None:
        state = f"exited ({box.exit_code})"
    row = [
        output.short(box.id, whole=no_trunc),
        _base(box, no_trunc),
        command,
        output.age(box.created),
        state,
        box.name,
    ]
    return [*row, output.size(box.size())] if size else row


def _command_width() -> int:
    """Columns for a command: less on a narrow terminal, where the rest takes some 70."""
    if not sys.stdout.isatty():
        return 30
    import shutil

    return max(10, min(30, shutil.get_terminal_size().columns - 70))


def _base(box: Container, no_trunc: bool) -> str:
    image = box.image
    if image is None:
        return str(box.base)
    return next(iter(image.names), output.short(image.id, whole=no_trunc))


def _described(box: Container, state: str, size: bool) -> dict[str, object]:
    image = box.image
    described: dict[str, object] = {
        "id": box.id,
        "name": box.name,
        "image": None if image is None else image.id,
        "image_names": [] if image is None else image.names,
        "base": None if box.base is None else str(box.base),
        "command": list(box.command),
        "created": output.time(box.created),
        "state": state,
        "exit_code": box.exit_code,
    }
    if size:
        described["size"] = box.size()
    return described
