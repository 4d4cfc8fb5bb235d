"""``lamina snapshot``."""

from __future__ import annotations

import click

from lamina.cli import completing, output
from lamina.cli.arguments import container_argument
from lamina.cli.session import Session


@click.command()
@container_argument
@click.argument("name", required=False, shell_complete=completing.snapshots)
@click.option("--rm", is_flag=True, help="Forget the snapshot; the container stays as it is.")
@output.format_option
@click.pass_obj
def command(session: Session, container: str, name: str | None, rm: bool, form: str) -> None:
    """Remember a container's state under a name.

    'lamina rollback' goes back to it. Without a name, lists the snapshots, the oldest first.

    \b
    Examples:
      lamina snapshot web before-upgrade
      lamina snapshot web
    """
    with session.store() as store:
        box = store.open(container)
        if name is None:
            if rm:
                raise click.UsageError("say which snapshot to forget")
            if form == "json":
                output.print_json(box.snapshots)
            else:
                for known in box.snapshots:
                    output.write_line(known)
        elif rm:
            box.remove_snapshot(name)
        else:
            box.snapshot(name)
