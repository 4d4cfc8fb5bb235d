"""``lamina prune``."""

from __future__ import annotations

import sys

import click

from lamina.cli import output
from lamina.cli.session import Session


@click.command()
@click.option("-c", "--containers", is_flag=True, help="Also containers that nobody uses.")
@click.option("-a", "--all", "all_", is_flag=True, help="Also named images without a container.")
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@output.format_option
@click.pass_obj
def command(session: Session, containers: bool, all_: bool, force: bool, form: str) -> int:
    """Remove what nobody needs any more.

    That is: images without a name or container, layers that belong to nothing, and what
    interrupted pulls have fetched. With --containers or --all more than that goes, so it asks
    first.

    \b
    Examples:
      lamina prune
      lamina prune --containers --all --force
    """
    if (containers or all_) and not force and not _agreed(containers, all_):
        session.remark("nothing removed")
        return 1
    with session.store() as store:
        pruned = store.prune(containers=containers, unused=all_)
    if form == "json":
        output.print_json(
            {
                "containers": pruned.containers,
                "images": pruned.images,
                "layers": list(pruned.layers),
                "size": pruned.size,
            }
        )
        return 0
    for kind, gone in (("container", pruned.containers), ("image", pruned.images)):
        for name in gone:
            print(f"Removed {kind} {output.short(name)}")
    print(f"Space given back: {output.size(pruned.size)}")
    return 0


def _agreed(containers: bool, all_: bool) -> bool:
    what = " and ".join(
        [*["all containers not in use"] * containers, *["all images without a container"] * all_]
    )
    if not sys.stdin.isatty():
        raise click.UsageError(f"this removes {what}: say --force where nobody can be asked")
    return click.confirm(f"This removes {what}. Go on?", err=True)
