"""``lamina copy``."""

from __future__ import annotations

import click

from lamina.cli import transfers
from lamina.cli.output import write_line
from lamina.cli.session import Session


@click.command()
@click.argument("source")
@click.argument("target")
@transfers.platform_option
@click.option("--all-platforms", is_flag=True, help="Copy an index with all that is in it.")
@click.option("--src-creds", metavar="USER[:PASSWORD]", help="As --creds of 'lamina pull'.")
@click.option("--dest-creds", metavar="USER[:PASSWORD]", help="As --creds of 'lamina push'.")
@click.option("--insecure", is_flag=True,
              help="Take any certificate, and plain HTTP where there is no TLS.")  # fmt: skip
@transfers.quiet_option
@click.pass_obj
def command(
    session: Session,
    source: str,
    target: str,
    platform: str | None,
    all_platforms: bool,
    src_creds: str | None,
    dest_creds: str | None,
    insecure: bool,
    quiet: bool,
) -> None:
    """Copy an image from one place to another, byte for byte.

    The store has no part in it. A place is docker://NAME or just NAME (in a registry),
    oci:DIR[:TAG] (an image layout), oci-archive:FILE[:NAME] or docker-archive:FILE[:NAME]. To a
    docker-archive go images whose layers are not compressed; registries mostly have others:
    'lamina pull' and 'lamina save' make a docker-archive of those.

    \b
    Examples:
      lamina copy debian:12 registry.example:5000/debian:12
      lamina copy --all-platforms docker://debian:12 oci:layout:12
      lamina copy docker-archive:debian.tar docker://registry.example:5000/debian:12
    """
    if all_platforms and platform is not None:
        raise click.UsageError("either --platform or --all-platforms")
    from lamina.oci.platform import parse
    from lamina.oci.transports import Place, copy_image

    places = Place.parse(source), Place.parse(target)
    with session.progress(quiet=quiet) as progress:
        found = copy_image(
            *places,
            platform=None if platform is None else parse(platform),
            every_platform=all_platforms,
            source_options=transfers.registry(insecure, src_creds, "--src-creds"),
            target_options=transfers.registry(insecure, dest_creds, "--dest-creds"),
            progress=progress,
        )
    write_line(f"{places[1]}: digest: {found.digest} size: {found.size}")
