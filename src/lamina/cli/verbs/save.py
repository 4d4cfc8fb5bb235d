"""``lamina save``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lamina.cli import completing, transfers
from lamina.cli.session import Session

if TYPE_CHECKING:
    from lamina.store.transfer.moving import Form


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True,
                shell_complete=completing.images)  # fmt: skip
@click.option("-o", "--output", "target", metavar="FILE|DIR", type=click.Path(),
              help="Write there instead of stdout.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["docker-archive", "oci-archive", "oci"]),
              default="docker-archive", show_default=True,
              help="What every 'docker load' reads; an OCI image layout as a tar; the same as a "
              "directory.")  # fmt: skip
@transfers.packing_options
@click.pass_obj
def command(
    session: Session,
    images: tuple[str, ...],
    target: str | None,
    form: Form,
    compression: str | None,
    level: int | None,
    threads: int | None,
) -> None:
    """Write images to an archive or an image layout.

    An image gets the name that it is given by here, one given by its id gets all its names. To a
    layout that is there already the images are added. Layers in a docker-archive are never
    compressed: compress the archive.

    \b
    Examples:
      lamina save debian:12 -o debian.tar
      lamina save debian:12 | docker load
      lamina save --format oci-archive --compress zstd debian:12 mine:1 -o both.tar
      lamina save --format oci debian:12 -o ./layout
    """
    if target is None and form == "oci":
        raise click.UsageError("--format oci writes a directory: use -o DIR")
    if target is None and sys.stdout.isatty():
        raise click.UsageError("an archive is nothing for a terminal: use -o FILE, or a pipe")
    packing = transfers.packing(compression, level, threads)
    with session.store(progress=True) as store:
        out = sys.stdout.buffer if target is None else target
        every = store.save(images, out, format=form, packing=packing)
    for name, saved in zip(images, every, strict=True):
        transfers.tell_changed(session, name, saved, asked=compression is not None)
