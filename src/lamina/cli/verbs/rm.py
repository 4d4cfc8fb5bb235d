"""``lamina rm``."""

from __future__ import annotations

import click

from lamina.cli.arguments import containers_argument, each
from lamina.cli.session import Session


@click.command()
@click.option("-f", "--force", is_flag=True, help="Also one that 'lamina mount' holds.")
@click.option("-a", "--all", "all_", is_flag=True, help="All containers.")
@containers_argument
@click.pass_obj
def command(session: Session, force: bool, all_: bool, containers: tuple[str, ...]) -> int:
    """Remove containers.

    With their snapshots, and all that they changed.

    \b
    Examples:
      lamina rm quiet_gneiss
      lamina rm --all
    """
    if not containers and not all_:
        raise click.UsageError("say which containers, or --all")
    with session.store() as store:
        if all_:
            containers = tuple(box.name for box in store.containers)

        def remove(name: str) -> None:
            store.open(name).remove(force=force)
            print(name)

        return each(session, containers, remove)
