"""``lamina fork``."""

from __future__ import annotations

import click

from lamina.cli.arguments import container_argument
from lamina.cli.session import Session


@click.command()
@container_argument
@click.argument("name", required=False)
@click.pass_obj
def command(session: Session, container: str, name: str | None) -> None:
    """Begin a second container where one is now.

    Takes no time and no space, however large it is. Prints the new container's id.

    \b
    Example:
      lamina fork web web-experiment
    """
    with session.store() as store:
        print(store.open(container).fork(name, keep=True).id)
