"""Deleting the tree that a rewriting left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lamina.errors import StoreError, printable
from lamina.kernel.mountinfo import is_mountpoint
from lamina.kernel.remove import remove_tree
from lamina.oci.docker import Files, documents
from lamina.store.adopt import usage
from lamina.store.adopt.leaving import LeftOut, called
from lamina.store.rewrite.place import Place

_OLD = ("aufs", "image/aufs")


@dataclass(frozen=True, slots=True)
class Deleted:
    """What went."""

    trees: tuple[str, ...] = ()
    """Directories of the Docker root; none if there were none any more."""
    size: int = 0
    """Bytes of disk that were given back."""


class OnlyThere(StoreError):
    """An old tree that is not deleted, for it has what the new one has not."""


def delete_source(root: str | os.PathLike[str], *, force: bool = False) -> Deleted:
    """Delete ``aufs``, ``image/aufs`` and the rest of the rewriting from a Docker root.

    They are renamed away first, so that no dockerd ever sees half of them; interrupted, it can
    be done again.

    Raises:
        OnlyThere: there is an image or container in the old tree alone; not with ``force``.
        StoreError: the root was not rewritten completely, a dockerd is at work on it, or the old
            tree is a mount.
        OSError: something could not be deleted.
    """
    place = Place(Path(os.path.realpath(root)))
    if not place.is_done and _is_deleted(place):
        return Deleted()
    _check_rewritten(place)
    with ExitStack() as held:
        fd = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        usage.lock(place.root, Files(fd), held, alone=True)
        for old in _OLD:
            if is_mountpoint(place.root / old):
                raise StoreError(f"{place.root / old} is a mount: unmount it first")
        only = _only_in_old(place, Files(fd))
        if only and not force:
            raise OnlyThere(f"not deleted: the old tree alone has {only}")
        return _delete(place)


def _delete(place: Place) -> Deleted:
    for old, name in zip(reversed(_OLD), ("old-image", "old-aufs"), strict=True):
        try:
            os.rename(place.root / old, place.stage / name)
        except FileNotFoundError:
            pass
    place.sync()
    size = _held_alone(place.stage)
    for entry in sorted(place.stage.iterdir()):
        if entry.name != "done":
            remove_tree(entry)
    remove_tree(place.stage)
    return Deleted(_OLD, size)


def only_in_old(root: str | os.PathLike[str]) -> LeftOut:
    """What would be lost with the old tree. Raises StoreError as :func:`delete_source`."""
    place = Place(Path(os.path.realpath(root)))
    if not place.is_done and _is_deleted(place):
        return LeftOut()
    _check_rewritten(place)
    fd = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _only_in_old(place, Files(fd))
    finally:
        os.close(fd)


def _check_rewritten(place: Place) -> None:
    if not place.is_done:
        raise StoreError(
            f"{place.root} was not rewritten yet: 'lamina adopt {place.root} --in-place "
            "--to docker-overlay2' does it"
        )


def _is_deleted(place: Place) -> bool:
    """Whether there is nothing but what Docker's overlay2 has."""
    return place.image.is_dir() and not any((place.root / old).exists() for old in _OLD)


# -- what would be lost -----------------------------------------------------------------


def _only_in_old(place: Place, files: Files) -> LeftOut:
    """What was left out of the rewriting, and what was made on aufs since."""
    before = place.before
    newer = set(files.names("image/aufs/imagedb/content/sha256")).difference(
        id.removeprefix("sha256:") for id in before.images
    )
    names = _names(files)
    only = before.damaged
    for id in sorted(newer):
        only.add("image", called(id, names.get(id, ())))
    for name in _newer_containers(files, before.left_out):
        only.add("container", name)
    return only


def _names(files: Files) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        data = files.read("image/aufs/repositories.json")
        repositories = msgspec.json.decode(data, type=documents.Repositories).Repositories
    except (OSError, msgspec.MsgspecError):
        return found
    for repository in repositories.values():
        for name, id in repository.items():
            if "@" not in name:
                found.setdefault(id.removeprefix("sha256:"), []).append(printable(name))
    return found


def _newer_containers(files: Files, known: list[str]) -> Iterator[str]:
    for id in sorted(set(files.names("containers")).difference(known)):
        try:
            data = files.read(f"containers/{id}/config.v2.json")
            config = msgspec.json.decode(data, type=documents.Container)
        except (OSError, msgspec.MsgspecError):
            continue  # of no use to any dockerd
        if config.driver == "aufs":
            yield printable(config.name.removeprefix("/") or id[:12])


def _held_alone(top: Path) -> int:
    """Bytes of disk that go with a tree: of files that have no link from elsewhere."""
    size = 0
    links: dict[tuple[int, int], int] = {}
    for directory, _, names in os.walk(os.fsencode(top)):
        for name in names:
            status = os.lstat(os.path.join(directory, name))
            identity = (status.st_dev, status.st_ino)
            links[identity] = links.get(identity, 0) + 1
            if links[identity] == status.st_nlink:
                size += status.st_blocks * 512
                del links[identity]
    return size
