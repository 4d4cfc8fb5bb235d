"""``lamina import``."""

from __future__ import annotations

import os
import sys

import click

from lamina.cli.session import Session


@click.command()
@click.argument("source", metavar="FILE|DIR|-", type=click.Path())
@click.argument("name", required=False)
@click.pass_obj
def command(session: Session, source: str, name: str | None) -> None:
    """Make an image of a tar archive or a directory.

    The archive holds a root file system; gzip, zstd, bzip2 and xz are recognised. '-' reads it
    from stdin. Prints the image's id.

    \b
    Examples:
      lamina import debian.tar.zst debian:12
      mmdebstrap bookworm - | lamina import - debian:12
      lamina import ./rootfs mine:base
    """
    if source == "-" and sys.stdin.isatty():
        raise click.UsageError("'-' reads an archive from stdin, which is a terminal")
    with session.store(progress=True) as store:
        if source == "-":
            image = store.import_tar(sys.stdin.buffer, name)
        elif os.path.isdir(source):
            image = store.import_directory(source, name)
        else:
            image = store.import_tar(source, name)
    print(image.id)
