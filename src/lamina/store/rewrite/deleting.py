"""Deleting the tree that a rewriting left behind."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import msgspec

from lamina.errors import StoreError, printable
from lamina.kernel.mountinfo import is_mountpoint
from lamina.kernel.remove import remove_tree
from lamina.oci.docker import Files, documents
from lamina.store.adopt import usage
from lamina.store.rewrite.place import Place


def delete_source(root: str | os.PathLike[str]) -> None:
    """Delete ``aufs``, ``image/aufs`` and the rest of the rewriting from a Docker root.

    They are renamed away first, so that no dockerd ever sees half of them; interrupted, it can
    be done again.

    Raises:
        StoreError: the root was not rewritten completely, a dockerd is at work on it, it has a
            container of AUFS's that was made since, or the old tree is a mount.
        OSError: something could not be deleted.
    """
    place = _rewritten(root)
    with ExitStack() as held:
        fd = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        files = Files(fd)
        usage.lock(place.root, files, held, alone=True)
        for old in ("aufs", "image/aufs"):
            if is_mountpoint(place.root / old):
                raise StoreError(f"{place.root / old} is a mount: unmount it first")
        _check_nothing_new(place, files)
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


def left_out(root: str | os.PathLike[str]) -> list[str]:
    """Ids of the containers that did not come over, which go with the old tree. StoreError."""
    return _rewritten(root).left_out


def _rewritten(root: str | os.PathLike[str]) -> Place:
    place = Place(Path(os.path.realpath(root)))
    if not place.is_done:
        raise StoreError(
            f"{place.root} was not rewritten yet: 'lamina adopt {place.root} --in-place "
            "--to docker-overlay2' does it"
        )
    return place


def _check_nothing_new(place: Place, files: Files) -> None:
    """That no container has been made on AUFS since: its layer is in the old tree alone."""
    for id in set(files.names("containers")).difference(place.left_out):
        try:
            data = files.read(f"containers/{id}/config.v2.json")
            config = msgspec.json.decode(data, type=documents.Container)
        except (OSError, msgspec.MsgspecError):
            continue  # of no use to any dockerd
        if config.driver == "aufs":
            name = printable(config.name.removeprefix("/") or id)
            raise StoreError(
                f"container {name} was made on aufs since {place.root} was rewritten, "
                "and would go with it: remove it first"
            )
