"""Names for the shell to complete. Whatever goes wrong, there is just nothing to offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lamina.store import Store


def containers(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of containers."""
    return _ask(ctx, incomplete, lambda store: (box.name for box in store.containers))


def images(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of images."""
    return _ask(ctx, incomplete, lambda store: (n for i in store.images for n in i.names))


def images_and_containers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of both."""
    return images(ctx, param, incomplete) + containers(ctx, param, incomplete)


def snapshots(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Snapshots of the container that was named before."""
    return _ask(ctx, incomplete, lambda store: store.open(ctx.params["container"]).snapshots)


def _ask(
    ctx: click.Context, incomplete: str, question: Callable[[Store], Iterable[str]]
) -> list[str]:
    """Ask the store that the options before the verb name."""
    from lamina.cli.session import Session
    from lamina.cli.settings import load

    try:
        with Session(load(ctx.find_root().params)).store() as store:
            return sorted(name for name in question(store) if name.startswith(incomplete))
    except Exception:
        return []
