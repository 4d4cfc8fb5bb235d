"""``lamina pull``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lamina.cli import completing, transfers
from lamina.cli.output import write_line
from lamina.cli.session import Session
from lamina.errors import ImageNotFound

if TYPE_CHECKING:
    from lamina.store import Image, Store


@click.command()
@click.argument("name", shell_complete=completing.images)
@transfers.platform_option
@transfers.keep_blobs_option
@transfers.registry_options
@click.option("-q", "--quiet", is_flag=True, help="No progress bar; print the name alone.")
@click.pass_obj
def command(
    session: Session,
    name: str,
    platform: str | None,
    keep_blobs: bool,
    insecure: bool,
    creds: str | None,
    quiet: bool,
) -> None:
    """Fetch an image from a registry.

    NAME is as in 'docker pull': debian:12 is docker.io/library/debian:12. What the store has is
    not fetched again, and what an interrupted pull has fetched is there for the next one.

    \b
    Examples:
      lamina pull debian:12
      lamina pull --platform linux/arm64 registry.example:5000/team/app@sha256:...
    """
    from lamina.oci.reference import Reference

    reference = Reference.parse(name)
    options = transfers.registry(insecure, creds)
    with session.store(progress=not quiet, work=f"pulling {reference}") as store:
        ids, before = {image.id for image in store.images}, _image(store, name)
        image = store.pull(name, platform=platform, keep_blobs=keep_blobs, options=options)
        digest = image.repo_digests[0].rpartition("@")[2]
    if not quiet:
        newer = image.id not in ids or before != image
        status = "Downloaded newer image" if newer else "Image is up to date"
        write_line(f"Digest: {digest}")
        write_line(f"Status: {status} for {reference.familiar}")
    write_line(str(reference))


def _image(store: Store, name: str) -> Image | None:
    try:
        return store.image(name)
    except ImageNotFound:
        return None
