"""``lamina import``."""

from __future__ import annotations

import os
import sys

import click

from lamina.cli.changing import change_option, changed
from lamina.cli.session import Session
from lamina.errors import NotAnArchive


@click.command()
@click.argument("source", metavar="FILE|DIR|-", type=click.Path())
@click.argument("name", required=False)
@change_option
@click.pass_obj
def command(session: Session, source: str, name: str | None, changes: tuple[str, ...]) -> None:
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
    config = changed(None, changes)
    with session.store(progress=True) as store:
        try:
            if source == "-":
                image = store.import_tar(sys.stdin.buffer, name, config=config)
            elif os.path.isdir(source):
                image = store.import_directory(source, name, config=config)
            else:
                image = store.import_tar(source, name, config=config)
        except NotAnArchive as error:
            error.add_note("stdin" if source == "-" else source)
            error.add_note("'lamina import' takes a root file system: a tar or a directory")
            raise
    print(image.id)
