"""``lamina export``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from lamina.cli.arguments import container_argument
from lamina.cli.session import Session


@click.command()
@container_argument
@click.option("-o", "--output", "target", metavar="FILE",
              type=click.Path(dir_okay=False, path_type=Path),
              help="Write there instead of stdout.")  # fmt: skip
@click.pass_obj
def command(session: Session, container: str, target: Path | None) -> None:
    """Write a container's file system as a tar archive.

    \b
    Examples:
      lamina export web -o web.tar
      lamina export web | zstd > web.tar.zst
    """
    if target is None and sys.stdout.isatty():
        raise click.UsageError("a tar archive is nothing for a terminal: use -o FILE, or a pipe")
    with session.store() as store, store.open(container).export() as tar:
        if target is None:
            shutil.copyfileobj(tar, sys.stdout.buffer, 1 << 20)
            return
        try:
            with target.open("wb") as file:
                shutil.copyfileobj(tar, file, 1 << 20)
        except BaseException:
            if target.is_file():
                target.unlink()
            raise
