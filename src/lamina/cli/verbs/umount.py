"""``lamina umount``."""

from __future__ import annotations

import click

from lamina.cli.arguments import containers_argument, each
from lamina.cli.session import Session
from lamina.errors import LaminaError


@click.command()
@click.option("-a", "--all", "all_", is_flag=True, help="All that are mounted.")
@containers_argument
@click.pass_obj
def command(session: Session, all_: bool, containers: tuple[str, ...]) -> int:
    """Undo 'lamina mount'.

    \b
    Example:
      lamina umount web
    """
    if not containers and not all_:
        raise click.UsageError("say which containers, or --all")
    with session.store() as store:
        if all_:
            for box in store.containers:
                if box.unpin():
                    print(box.name)
            return 0

        def umount(name: str) -> None:
            if not store.open(name).unpin():
                raise LaminaError(f"container {name} is not mounted")
            print(name)

        return each(session, containers, umount)
