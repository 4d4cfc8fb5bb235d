"""New images of the same layers: what changes is how they are run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.errors import LayerNotFound
from lamina.oci import History
from lamina.oci.config import timestamp
from lamina.store.core import Core
from lamina.store.images import Image, Images
from lamina.store.layers import Layers
from lamina.store.work import Work

if TYPE_CHECKING:
    from lamina.oci import ImageConfig, RunConfig


def configure(
    core: Core,
    image: Image,
    name: str | None,
    *,
    config: RunConfig | None,
    author: str | None,
    step: tuple[str | None, str | None],
    keep_history: bool,
) -> Image:
    """See :meth:`lamina.store.Store.configure`; ``step`` is what did it, and a comment."""
    new = image.config.copy()
    new.created = timestamp()
    new.author = new.author if author is None else author or None
    new.config = config
    created_by, comment = step
    done = History(
        created=new.created,
        created_by=created_by,
        author=author or None,
        comment=comment,
        empty_layer=True,
    )
    _record(new, done, keep=keep_history)
    chain_id = image.chain_id
    with Work(core) as work:
        top = None
        if chain_id is not None:
            top = Layers(core).hold(chain_id, work)
            if top is None:
                raise LayerNotFound(chain_id)
        return Images(core).create(new, top, [] if name is None else [name])


def _record(image: ImageConfig, step: History, *, keep: bool) -> None:
    """Add a step to the history, if that tells of all layers.

    Where it does not tell of them, a step alone would say that the image has none.
    """
    if not keep:
        image.history = [History(created=step.created) for _ in image.rootfs.diff_ids]
    if image.history is not None or not image.rootfs.diff_ids:
        image.history = [*(image.history or ()), step]
