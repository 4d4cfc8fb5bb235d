"""``lamina inspect``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lamina.cli import completing, output
from lamina.cli.arguments import each
from lamina.cli.session import Session
from lamina.errors import ImageNotFound, LaminaError

if TYPE_CHECKING:
    from lamina.store import Container, Image, Store


@click.command()
@click.option("--type", "kind", type=click.Choice(["container", "image"]),
              help="What NAME is, where both have it.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["json"]), default="json",
              help="The only one there is.")  # fmt: skip
@click.argument("names", metavar="NAME...", nargs=-1, required=True,
                shell_complete=completing.images_and_containers)  # fmt: skip
@click.pass_obj
def command(session: Session, kind: str | None, form: str, names: tuple[str, ...]) -> int:
    """Show all about images or containers, as JSON.

    A name is looked up among the containers first.

    \b
    Example:
      lamina inspect debian:12 | jq '.[0].config'
    """
    found: list[dict[str, object]] = []
    with session.store() as store:
        status = each(session, names, lambda name: found.append(_look_up(store, name, kind)))
    output.print_json(found)
    return status


def _look_up(store: Store, name: str, kind: str | None) -> dict[str, object]:
    if kind != "image":
        try:
            return _container(store.open(name))
        except LookupError:
            if kind is not None:
                raise
    try:
        return _image(store.image(name))
    except ImageNotFound as error:
        if kind is not None:
            raise
        raise LaminaError(f"there is no container and no image {name}") from error


def _container(box: Container) -> dict[str, object]:
    return {
        "type": "container",
        "id": box.id,
        "name": box.name,
        "image": None if box.image is None else box.image.id,
        "base": None if box.base is None else str(box.base),
        "created": output.time(box.created),
        "state": str(box.state),
        "exit_code": box.exit_code,
        "command": list(box.command),
        "labels": dict(box.labels),
        "snapshots": box.snapshots,
        "size": box.size(),
    }


def _image(image: Image) -> dict[str, object]:
    return {
        "type": "image",
        "id": image.id,
        "names": image.names,
        "repo_digests": image.repo_digests,
        "created": output.time(image.created),
        "size": image.size,
        "chain_id": image.chain_id,
        "layers": [
            {
                "id": layer.id,
                "diff_id": layer.diff_id,
                "chain_id": layer.chain_id,
                "size": layer.size,
                "tar_size": layer.tar_size,
                "driver": layer.driver,
            }
            for layer in image.layers
        ],
        "config": json.loads(image.config.encode()),
    }
