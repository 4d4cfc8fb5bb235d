"""``lamina du``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lamina.cli import output
from lamina.cli.session import Session

if TYPE_CHECKING:
    from lamina.store import Usage


@click.command()
@output.format_option
@click.pass_obj
def command(session: Session, form: str) -> None:
    """Show how much disk what takes.

    Images (what they share with others and what is theirs alone), containers (what they have
    written, and what their snapshots keep), and the whole, each layer counted once.

    \b
    Example:
      lamina du
    """
    with session.store() as store:
        usage = store.usage()
    if form == "json":
        output.print_json(_described(usage))
        return
    _print(usage)


def _print(usage: Usage) -> None:
    if usage.images:
        rows = [
            [
                next(iter(image.names), "<none>"),
                output.short(image.id),
                *map(output.size, (image.size, image.shared, image.unique)),
                str(image.containers),
            ]
            for image in usage.images
        ]
        head = ["IMAGE", "IMAGE ID", "SIZE", "SHARED", "UNIQUE", "CONTAINERS"]
        output.print_table(head, rows)
        print()
    if usage.containers:
        rows = [
            [
                box.name,
                output.short(box.id),
                *map(output.size, (box.writable, box.snapshots, box.base)),
            ]
            for box in usage.containers
        ]
        output.print_table(["CONTAINER", "CONTAINER ID", "WRITTEN", "SNAPSHOTS", "BASE"], rows)
        print()
    print(f"Total: {output.size(usage.total)}, reclaimable: {output.size(usage.reclaimable)}")


def _described(usage: Usage) -> dict[str, object]:
    return {
        "images": [
            {
                "id": image.id,
                "names": image.names,
                "size": image.size,
                "shared": image.shared,
                "unique": image.unique,
                "containers": image.containers,
            }
            for image in usage.images
        ],
        "containers": [
            {
                "id": box.id,
                "name": box.name,
                "written": box.writable,
                "snapshots": box.snapshots,
                "base": box.base,
            }
            for box in usage.containers
        ],
        "layers": usage.layers,
        "blobs": usage.blobs,
        "total": usage.total,
        "reclaimable": usage.reclaimable,
    }
