"""``lamina rmi``."""

from __future__ import annotations

import click

from lamina.cli import completing
from lamina.cli.arguments import each
from lamina.cli.session import Session


@click.command()
@click.option("-f", "--force", is_flag=True, help="By id, also an image of several names.")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True,
                shell_complete=completing.images)  # fmt: skip
@click.pass_obj
def command(session: Session, force: bool, images: tuple[str, ...]) -> int:
    """Remove images.

    Takes a name away; with its last name the image goes, and the layers that nothing else needs.

    \b
    Example:
      lamina rmi debian:hello
    """
    with session.store() as store:

        def remove(name: str) -> None:
            for gone in store.remove_image(name, force=force):
                kind = "Deleted" if gone.startswith("sha256:") else "Untagged"
                print(f"{kind}: {gone}")

        return each(session, images, remove)
