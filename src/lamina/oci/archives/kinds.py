"""Telling by the members of a tar whether it is an image, and of which kind."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from lamina.archive.tar import Entry, Type

OCI_LAYOUT = "oci-layout"
INDEX = "index.json"
DOCKER_MANIFEST = "manifest.json"
DOCKER_REPOSITORIES = "repositories"

_SYSTEM_DIRECTORIES = frozenset({
    b"bin", b"boot", b"dev", b"etc", b"home", b"lib", b"lib32", b"lib64", b"media", b"mnt", b"nix",
    b"opt", b"proc", b"root", b"run", b"sbin", b"srv", b"sys", b"tmp", b"usr", b"var",
})  # fmt: skip
_ONLY_IN_ROOTS = (Type.CHARACTER, Type.BLOCK, Type.FIFO)


class Kind(Enum):
    """What a tar archive is."""

    OCI = "an image layout"
    DOCKER = "what docker save writes"
    OLD_DOCKER = "what docker save wrote before Docker 1.10"
    PLAIN = "a root file system, or anything else"


def is_plain(entry: Entry) -> bool:
    """Whether an entry shows that the tar is no image's, whatever else is in it.

    A root file system may well have a ``manifest.json``; no image archive has an ``etc``.
    """
    top = entry.name.removeprefix(b"./").lstrip(b"/").partition(b"/")[0]
    return top in _SYSTEM_DIRECTORIES or entry.type in _ONLY_IN_ROOTS


def kind_of(names: Collection[str]) -> Kind:
    """The kind of an archive with members of these names, none of them :func:`is_plain`."""
    if OCI_LAYOUT in names or (INDEX in names and any(n.startswith("blobs/") for n in names)):
        return Kind.OCI
    if DOCKER_MANIFEST in names:
        return Kind.DOCKER
    if DOCKER_REPOSITORIES in names and any(name.endswith("/layer.tar") for name in names):
        return Kind.OLD_DOCKER
    return Kind.PLAIN
