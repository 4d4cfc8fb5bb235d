"""``lamina du``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lamina.cli import output
from lamina.cli.session import Session

if TYPE_CHECKING:
    from lamina.store import Sharing, Usage


@click.command()
@click.option("--shared", is_flag=True,
              help="Also equal files in several layers; reads many files.")  # fmt: skip
@output.format_option
@click.pass_obj
def command(session: Session, shared: bool, form: str) -> None:
    """Show how much disk what takes.

    Images (what they share with others and what is theirs alone), containers (what they have
    written, and what their snapshots keep), and the whole, each layer counted once.

    \b
    Example:
      lamina du
      lamina du --shared
    """
    with session.store(progress=shared) as store:
        usage = store.usage()
        sharing = store.sharing() if shared else None
    if form == "json":
        output.print_json(_described(usage) | _equal(sharing))
        return
    _print(usage)
    if sharing is not None and not sharing.files:
        print("Equal files in several layers: none")
    elif sharing is not None:
        print(f"Equal files in several layers: {sharing.files:,}, with "
              f"{output.count(sharing.copies, 'more copy', 'more copies')} of "
              f"{output.size(sharing.size)}; on xfs and btrfs 'lamina dedup' lets "
              f"{output.size(sharing.sharable)} share blocks")  # fmt: skip


def _equal(sharing: Sharing | None) -> dict[str, object]:
    if sharing is None:
        return {}
    found = {
        "files": sharing.files,
        "copies": sharing.copies,
        "size": sharing.size,
        "sharable": sharing.sharable,
    }
    return {"equal_files": found}


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
    if usage.indexes:
        print(f"Indexes by which layers are mounted: {output.size(usage.indexes)}")
    if usage.downloads:
        print(f"Downloads of interrupted pulls: {output.size(usage.downloads)}")
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
        "indexes": usage.indexes,
        "blobs": usage.blobs,
        "downloads": usage.downloads,
        "total": usage.total,
        "reclaimable": usage.reclaimable,
    }
