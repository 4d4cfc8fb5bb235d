"""``lamina check``."""

from __future__ import annotations

import sys

import click

from lamina.cli import output
from lamina.cli.session import Session


@click.command()
@click.option("--repair", is_flag=True, help="Remove what belongs to nothing, or is made again.")
@click.option("--contents", is_flag=True, help="Also read and verify all files of all layers.")
@output.format_option
@click.pass_obj
def command(session: Session, repair: bool, contents: bool, form: str) -> int:
    """Compare what the store says with what lies on disk.

    The exit status is 1 if something is wrong and was not repaired.

    \b
    Example:
      lamina check --contents
    """
    with session.store(progress=True) as store:
        problems = store.check(repair=repair, contents=contents)
    if form == "json":
        described = [
            {"kind": p.kind, "id": p.id, "what": p.what, "repaired": p.repaired} for p in problems
        ]
        output.print_json(described)
    else:
        for problem in problems:
            output.write_line(str(problem))
        if not problems and sys.stdout.isatty():
            output.write_line("all is well")
    return 0 if all(problem.repaired for problem in problems) else 1
