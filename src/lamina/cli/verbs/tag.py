"""``lamina tag``."""

from __future__ import annotations

import click

from lamina.cli import completing
from lamina.cli.session import Session


@click.command()
@click.argument("image", shell_complete=completing.images)
@click.argument("name")
@click.pass_obj
def command(session: Session, image: str, name: str) -> None:
    """Give an image another name.

    A name that another image had is taken away from it.

    \b
    Example:
      lamina tag debian:12 mine:base
    """
    with session.store() as store:
        store.image(image).tag(name)
