"""``lamina rollback``."""

from __future__ import annotations

import click

from lamina.cli import completing
from lamina.cli.arguments import container_argument
from lamina.cli.session import Session


@click.command()
@container_argument
@click.argument("snapshot", shell_complete=completing.snapshots)
@click.pass_obj
def command(session: Session, container: str, snapshot: str) -> None:
    """Take a container back to a snapshot.

    What was written since is lost; the snapshot stays.

    \b
    Example:
      lamina rollback web before-upgrade
    """
    with session.store() as store:
        store.open(container).rollback(snapshot)
