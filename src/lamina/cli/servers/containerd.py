"""``lamina serve containerd``."""

from __future__ import annotations

import click

from lamina.cli.session import Session


@click.command()
@click.pass_obj
def command(session: Session) -> None:
    """Be a snapshotter, and a differ, of containerd."""
    raise click.ClickException("not built yet")
