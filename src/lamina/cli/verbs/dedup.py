"""``lamina dedup``."""

from __future__ import annotations

import click

from lamina.cli import output
from lamina.cli.session import Session


@click.command()
@output.format_option
@click.pass_obj
def command(session: Session, form: str) -> None:
    """Let equal files in the layers of images share blocks of the disk.

    That takes a file system with reflinks: xfs or btrfs. Nothing changes but the room that is
    taken; the kernel compares the bytes. Files in directories (driver overlay) are shared whole,
    as are equal tars. Other files in tars (driver erofs) are shared on xfs alone, and only where
    they begin at the same place in a block; 'lamina du --shared' says how much that is.

    \b
    Example:
      lamina dedup
    """
    with session.store(progress=True) as store:
        result = store.dedup()
    if form == "json":
        output.print_json({"files": result.files, "size": result.size})
        return
    print(f"{output.count(result.files, 'copy', 'copies')} share blocks now, "
          f"{output.size(result.size)}")  # fmt: skip
