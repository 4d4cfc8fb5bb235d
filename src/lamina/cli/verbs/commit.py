"""``lamina commit``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lamina.cli.arguments import container_argument, xattrs_option
from lamina.cli.changing import change_option, changed
from lamina.cli.session import Session

if TYPE_CHECKING:
    from lamina.store.packing import Xattrs


@click.command()
@container_argument
@click.argument("name", required=False)
@click.option("-m", "--message", default="", metavar="TEXT", help="For the image's history.")
@click.option("-a", "--author", default="", metavar="TEXT", help="Who made it.")
@click.option("--squash", is_flag=True, help="Make an image of a single layer.")
@change_option
@xattrs_option
@click.pass_obj
def command(
    session: Session,
    container: str,
    name: str | None,
    message: str,
    author: str,
    squash: bool,
    changes: tuple[str, ...],
    xattrs: Xattrs,
) -> None:
    """Make an image of a container's changes.

    The image has the layers of the container's own image and one more. Prints its id. If
    SOURCE_DATE_EPOCH is set, that is when it was made, and no file in the new layer is later.

    \b
    Examples:
      lamina commit -m "say hello" quiet_gneiss debian:hello
      lamina commit -c 'CMD ["python3", "-m", "http.server"]' -c "WORKDIR /srv" web web:1
    """
    with session.store(progress=True) as store:
        box = store.open(container)
        config = changed(box.image.config if box.image else None, changes)
        image = box.commit(
            name, message=message, author=author, squash=squash, config=config, xattrs=xattrs
        )
    print(image.id)
