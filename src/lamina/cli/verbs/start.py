"""``lamina start``."""

from __future__ import annotations

import click

from lamina.cli.arguments import container_argument
from lamina.cli.running import run_command
from lamina.cli.session import Session


@click.command()
@click.option("-a", "--attach", is_flag=True, help="Accepted for Docker's sake: always so.")
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on also if it is no terminal.")
@container_argument
@click.pass_obj
def command(session: Session, attach: bool, interactive: bool, container: str) -> int:
    """Run the command of a container, in the foreground.

    As 'lamina create' or 'run' was told it. The exit status is the command's.

    \b
    Example:
      lamina start web
    """
    with session.store() as store:
        return run_command(store.open(container), interactive=interactive)
