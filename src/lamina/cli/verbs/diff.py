"""``lamina diff``."""

from __future__ import annotations

import os

import click

from lamina.cli import output
from lamina.cli.arguments import container_argument
from lamina.cli.session import Session


@click.command()
@container_argument
@output.format_option
@click.pass_obj
def command(session: Session, container: str, form: str) -> None:
    """Show what a container changed.

    One line a path, sorted: A for added, C for changed, D for deleted.

    \b
    Example:
      lamina diff quiet_gneiss
    """
    with session.store() as store:
        changes = store.open(container).changes()
    if form == "json":
        described = [{"path": os.fsdecode(c.path), "kind": str(c.kind)} for c in changes]
        output.print_json(described)
        return
    for change in changes:
        output.write_line(change.kind.encode() + b" " + change.path)
