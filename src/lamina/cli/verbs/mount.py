"""``lamina mount``."""

from __future__ import annotations

import click

from lamina.cli import output, rootless
from lamina.cli.arguments import containers_argument, each
from lamina.cli.session import Session
from lamina.errors import PermissionRequired


@click.command()
@containers_argument
@output.format_option
@click.pass_obj
def command(session: Session, containers: tuple[str, ...], form: str) -> int:
    """Mount a container's files, or list what is mounted.

    Prints the directory; it stays until 'lamina umount' or a reboot. An ordinary user does this
    within 'lamina unshare', outside of which the mount could not be seen.

    \b
    Examples:
      ls "$(lamina mount web)/etc"
      lamina mount
    """
    if containers and rootless.needed():
        raise PermissionRequired("mounting takes root, or a shell within 'lamina unshare'")
    with session.store() as store:
        if containers:
            return each(
                session, containers, lambda name: output.write_line(str(store.open(name).pin()))
            )
        mounted = []
        for box in store.containers:
            if box.state in ("mounted", "running"):
                with box.mounted() as root:
                    mounted.append((box, str(root)))
        if form == "json":
            output.print_json([{"id": b.id, "name": b.name, "path": path} for b, path in mounted])
        elif mounted:
            rows = [[output.short(box.id), box.name, path] for box, path in mounted]
            output.print_table(["CONTAINER ID", "NAME", "PATH"], rows)
    return 0
