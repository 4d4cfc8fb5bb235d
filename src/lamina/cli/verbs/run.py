"""``lamina run``."""

from __future__ import annotations

from typing import Any

import click

from lamina.cli.running import create, early_helper, run_command, run_options
from lamina.cli.session import Session


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--rm", is_flag=True, help="Remove the container when the command has ended.")
@run_options
@click.pass_obj
def command(session: Session, /, rm: bool, **given: Any) -> int:
    """Run a command in a new container.

    The container stands on an image, or on a directory of this machine, which it leaves as it
    is. Without --rm it stays, for 'lamina diff', 'commit' or 'start'. The exit status is the
    command's; 125 if Lamina failed, 126 or 127 if the command can't be run or is not there.

    \b
    Examples:
      lamina run -it --rm debian:12 bash
      lamina run --name build -v "$PWD":/src -w /src debian:12 make
      lamina run --rm / -- apt-get update      (over this machine itself)
    """
    session.enter()
    with (
        early_helper(interactive=given["interactive"], runtime=given["runtime"]) as helper,
        session.store() as store,
        create(store, rm=rm, runs=True, **given) as container,
    ):
        return run_command(container, helper=helper)
