"""``lamina push``."""

from __future__ import annotations

import click

from lamina.cli import completing, transfers
from lamina.cli.output import write_line
from lamina.cli.session import Session


@click.command()
@click.argument("image", shell_complete=completing.images)
@click.argument("destination", required=False, shell_complete=completing.images)
@transfers.packing_options
@transfers.registry_options
@transfers.quiet_option
@click.pass_obj
def command(
    session: Session,
    image: str,
    destination: str | None,
    compression: str | None,
    level: int | None,
    threads: int | None,
    insecure: bool,
    creds: str | None,
    quiet: bool,
) -> None:
    """Send an image to a registry.

    It goes to DESTINATION, or where its own name says. What the registry has is not sent again.

    \b
    Examples:
      lamina push registry.example:5000/team/app:1
      lamina push debian:hello registry.example:5000/team/hello:1
    """
    from lamina.oci.reference import Reference

    packing = transfers.packing(compression, level, threads)
    options = transfers.registry(insecure, creds)
    target = Reference.parse(destination or image)
    with session.store(progress=not quiet) as store:
        if not (destination or target.digest or target.familiar in store.image(image).names):
            raise click.UsageError("an id has no place to go: give DESTINATION")
        saved = store.push(image, str(target), packing=packing, options=options)
    transfers.tell_changed(session, target.familiar, saved, asked=compression is not None)
    if not quiet:
        write_line(f"{target}: digest: {saved.manifest.digest} size: {saved.manifest.size}")
