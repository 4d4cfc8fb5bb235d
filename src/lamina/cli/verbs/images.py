"""``lamina images``."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from lamina.cli import completing, output
from lamina.cli.session import Session
from lamina.cli.settings import pairs

if TYPE_CHECKING:
    from lamina.store import Image


@click.command()
@click.argument("name", required=False, shell_complete=completing.images)
@click.option("-a", "--all", "all_", is_flag=True, help="Accepted for Docker's sake.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.option("-f", "--filter", "filters", metavar="KEY=VALUE", multiple=True,
              help="Only images with dangling=true|false or reference=PATTERN.")  # fmt: skip
@output.no_trunc_option
@output.format_option
@click.pass_obj
def command(
    session: Session,
    name: str | None,
    all_: bool,
    quiet: bool,
    filters: tuple[str, ...],
    no_trunc: bool,
    form: str,
) -> None:
    """List images.

    Newest first; all of them, or those whose repository or whole name is NAME, which may be a
    pattern of * and ?.

    \b
    Examples:
      lamina images
      lamina images 'registry.example:5000/*'
      lamina images --format json | jq '.[].names'
    """
    wanted = pairs(filters, "--filter")
    if unknown := wanted.keys() - {"dangling", "reference"}:
        raise click.UsageError(f"--filter knows dangling and reference, not '{min(unknown)}'")
    with session.store() as store:
        found = [i for i in store.images if _matches(i, name, wanted)]
        if form == "json":
            output.print_json([_described(image) for image in found])
        elif quiet:
            for image in found:
                output.write_line(image.id if no_trunc else image.short_id)
        else:
            patterns = [p for p in (name, wanted.get("reference")) if p is not None]
            rows = [row for image in found for row in _rows(image, patterns, no_trunc)]
            output.print_table(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], rows)


def _matches(image: Image, name: str | None, wanted: dict[str, str]) -> bool:
    names = image.names
    if name is not None and not any(_is_called(n, name) for n in names):
        return False
    if "dangling" in wanted and (wanted["dangling"] in ("true", "1")) != (not names):
        return False
    pattern = wanted.get("reference")
    return pattern is None or any(_is_called(n, pattern) for n in names)


def _is_called(full: str, name: str) -> bool:
    return any(n == name or fnmatchcase(n, name) for n in (full, full.rpartition(":")[0]))


def _rows(image: Image, patterns: list[str], no_trunc: bool) -> list[list[str]]:
    rest = [
        image.id if no_trunc else image.short_id,
        output.age(image.created),
        output.size(image.size),
    ]
    called = (n for n in image.names if all(_is_called(n, pattern) for pattern in patterns))
    names = [n.rpartition(":") for n in called]
    return [[repository, tag, *rest] for repository, _, tag in names or [("<none>", "", "<none>")]]


def _described(image: Image) -> dict[str, object]:
    return {
        "id": image.id,
        "names": image.names,
        "created": output.time(image.created),
        "size": image.size,
        "layers": len(image.diff_ids),
    }
