"""``lamina create``."""

from __future__ import annotations

from typing import Any

import click

from lamina.cli import running
from lamina.cli.session import Session


@click.command(context_settings={"allow_interspersed_args": False})
@running.run_options
@click.pass_obj
def command(session: Session, /, **given: Any) -> None:
    """Make a container without starting it.

    The options are those of 'lamina run'; 'lamina start' uses them. Prints the container's id.

    \b
    Examples:
      lamina create --name web debian:12 python3 -m http.server
      lamina mount web
    """
    with session.store() as store:
        print(running.create(store, **given).id)
