"""Deleting the tree that a rewriting left behind."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from lamina.errors import StoreError
from lamina.kernel.remove import remove_tree
from lamina.oci.docker import Files
from lamina.store.adopt import usage
from lamina.store.rewrite.place import Place


def delete_source(root: str | os.PathLike[str]) -> None:
    """Delete ``aufs``, ``image/aufs`` and the rest of the rewriting from a Docker root.

    They are renamed away first, so that no dockerd ever sees half of them; interrupted, it can
    be done again.

    Raises:
        StoreError: the root was not rewritten completely, or a dockerd is at work on it.
        OSError: something could not be deleted.
    """
    place = Place(Path(os.path.realpath(root)))
    if not place.is_done:
        raise StoreError(
            f"{place.root} was not rewritten yet: 'lamina adopt {place.root} --in-place "
            "--to docker-overlay2' does it"
        )
    with ExitStack() as held:
        fd = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        usage.lock(place.root, Files(fd), held, alone=True)
        for old, name in (("image/aufs", "old-image"), ("aufs", "old-aufs")):
            try:
                os.rename(place.root / old, place.stage / name)
            except FileNotFoundError:
                pass
        place.sync()
        for entry in sorted(place.stage.iterdir()):
            if entry.name != "done":
                remove_tree(entry)
        remove_tree(place.stage)
