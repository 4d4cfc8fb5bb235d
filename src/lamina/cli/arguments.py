"""Arguments that several verbs have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from lamina.cli import completing
from lamina.cli.messages import message, say
from lamina.errors import LaminaError

if TYPE_CHECKING:
    from lamina.cli.session import Session

container_argument = click.argument("container", shell_complete=completing.containers)
containers_argument = click.argument(
    "containers", metavar="CONTAINER...", nargs=-1, shell_complete=completing.containers
)

xattrs_option = click.option(
    "--xattrs", type=click.Choice(["portable", "all"]), default="portable", show_default=True,
    help="Extended attributes: those that every reader takes as meant, or all.",
)  # fmt: skip


def each(session: Session, names: Iterable[str], do: Callable[[str], None]) -> int:
    """Do it for each name, one's failure being no reason not to do the others; exit status."""
    status = 0
    for name in names:
        try:
            do(name)
        except (LaminaError, OSError) as error:
            if session.settings.debug:
                raise
            say(message(error))
            status = 1
    return status
