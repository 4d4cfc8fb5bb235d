"""``lamina commit``."""

from __future__ import annotations

import click

from lamina.cli.arguments import container_argument
from lamina.cli.session import Session


@click.command()
@container_argument
@click.argument("name", required=False)
@click.option("-m", "--message", default="", metavar="TEXT", help="For the image's history.")
@click.option("-a", "--author", default="", metavar="TEXT", help="Who made it.")
@click.option("--squash", is_flag=True, help="Make an image of a single layer.")
@click.pass_obj
def command(
    session: Session, container: str, name: str | None, message: str, author: str, squash: bool
) -> None:
    """Make an image of a container's changes.

    The image has the layers of the container's own image and one more. Prints its id.

    \b
    Example:
      lamina commit -m "say hello" quiet_gneiss debian:hello
    """
    with session.store(progress=True) as store:
        box = store.open(container)
        print(box.commit(name, message=message, author=author, squash=squash).id)
