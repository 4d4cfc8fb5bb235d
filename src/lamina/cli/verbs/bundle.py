"""``lamina bundle``."""

from __future__ import annotations

from typing import Any

import click

from lamina.cli import rootless, running
from lamina.cli.session import Session


@click.command(context_settings={"allow_interspersed_args": False})
@running.bundle_options
@click.pass_obj
def command(session: Session, /, **given: Any) -> None:
    """Write an OCI runtime bundle of an image.

    DIR gets a copy of the image's files in 'rootfs', and a 'config.json' that says how to run the
    command, as 'lamina run' would. The bundle needs Lamina no more. DIR must be empty, or not
    there. A bundle made by an ordinary user is for that user to run.

    \b
    Examples:
      lamina bundle debian:12 web -- sleep 60
      runc run --bundle web my-container
    """
    is_user = rootless.needed()
    with session.store() as store:
        idmap = None
        if is_user and not rootless.needed():
            from lamina.kernel.idmap import IdMap

            idmap = IdMap.of_process()
        running.bundle(store, idmap=idmap, **given)
