"""``lamina export``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamina.cli.arguments import container_argument, xattrs_option
from lamina.cli.session import Session

if TYPE_CHECKING:
    from lamina.store.packing import Xattrs


@click.command()
@container_argument
@click.option("-o", "--output", "target", metavar="FILE",
              type=click.Path(dir_okay=False, path_type=Path),
              help="Write there instead of stdout.")  # fmt: skip
@xattrs_option
@click.option("--sparse", is_flag=True, help="Leave out holes and other long runs of zeros.")
@click.pass_obj
def command(
    session: Session, container: str, target: Path | None, xattrs: Xattrs, sparse: bool
) -> None:
    """Write a container's file system as a tar archive.

    With --sparse it is for GNU tar, bsdtar and Lamina; Docker and Podman read it too, but can't
    pass on an image that was made of it.

    \b
    Examples:
      lamina export web -o web.tar
      lamina export web | zstd > web.tar.zst
    """
    if target is None and sys.stdout.isatty():
        raise click.UsageError("a tar archive is nothing for a terminal: use -o FILE, or a pipe")
    with (
        session.store() as store,
        store.open(container).export(xattrs=xattrs, sparse=sparse) as tar,
    ):
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
