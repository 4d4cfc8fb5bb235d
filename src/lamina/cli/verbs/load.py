"""``lamina load``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lamina.cli import transfers
from lamina.cli.output import write_line
from lamina.cli.session import Session
from lamina.errors import LaminaError, NotAnArchive

if TYPE_CHECKING:
    from lamina.store import Image


_WANTED = "'lamina load' takes what 'docker save', 'podman save' or 'lamina save' wrote"


@click.command()
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("-i", "--input", "source", metavar="FILE|DIR|-", type=click.Path(),
              help="Read that instead of stdin.")  # fmt: skip
@click.option("--name", metavar="NAME", help="What the image is called here, if it is just one.")
@transfers.platform_option
@transfers.keep_blobs_option
@transfers.quiet_option
@click.pass_obj
def command(
    session: Session,
    names: tuple[str, ...],
    source: str | None,
    name: str | None,
    platform: str | None,
    keep_blobs: bool,
    quiet: bool,
) -> None:
    """Load images from an archive or an image layout.

    Takes what 'docker save', 'podman save', 'skopeo copy', 'ctr export' and 'lamina save' write,
    compressed or not, and directories that are OCI image layouts. Loads all images, or those
    called NAME in it.

    \b
    Examples:
      lamina load -i debian.tar
      docker save debian:12 | lamina load
      lamina load -i ./layout --name mine:1 12
    """
    from_stdin = source in (None, "-")
    if from_stdin and sys.stdin.isatty():
        meant = _meant(names) or "an archive is read from stdin, which is a terminal: use -i FILE"
        raise click.UsageError(meant)
    with session.store(progress=not quiet) as store:
        try:
            store.load(
                sys.stdin.buffer if from_stdin or source is None else source,
                names,
                name=name,
                platform=platform,
                keep_blobs=keep_blobs,
                loaded=_loaded,
            )
        except NotAnArchive as error:
            if not getattr(error, "__notes__", ()):  # it is the file itself, no layer in it
                if not (hint := _meant(names)):
                    error.add_note("stdin" if from_stdin else str(source))
                error.add_note(hint or _WANTED)
            raise
        except LaminaError as error:
            if from_stdin and (hint := _meant(names)):
                error.add_note(hint)
            raise


def _meant(names: Sequence[str]) -> str | None:
    """What to do for a file that is given as if it were a name."""
    file = next((name for name in names if os.path.exists(name)), None)
    return None if file is None else f"to read a file or directory: lamina load -i {file}"


def _loaded(image: Image, names: Sequence[str]) -> None:
    for each in names:
        write_line(f"Loaded image: {each}")
    if not names:
        write_line(f"Loaded image ID: {image.id}")
