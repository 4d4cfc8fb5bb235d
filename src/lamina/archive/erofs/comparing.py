"""Indexes where :mod:`lamina.archive.changes` wants trees: what changed is told without a mount.

:func:`walk` is :func:`lamina.archive.stack.walk` for one layer, :class:`Lookup` is
:class:`lamina.archive.lookup.Lookup` for any number. Marks are overlayfs's, as in every index.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lamina.archive import lookup, stack
from lamina.archive.erofs.attributes import OPAQUE
from lamina.archive.erofs.image import Image
from lamina.archive.erofs.inode import Inode
from lamina.archive.stack import NodeKind
from lamina.archive.whiteout import OVERLAY
from lamina.archive.xattrs import XattrPolicy

Place: TypeAlias = tuple[int, Image, Inode]
"""An inode, its image, and a number that no other image has: less than 0, as no device's is."""


def _status(place: Place) -> os.stat_result:
    number, _, inode = place
    ids = inode.mode, inode.nid, number, inode.nlink, inode.uid, inode.gid
    seconds = inode.mtime_ns // 1_000_000_000
    more = {"st_mtime_ns": inode.mtime_ns, "st_rdev": os.makedev(*inode.device)}
    return os.stat_result((*ids, inode.size, seconds, seconds, seconds), more)


def _attributes(place: Place, policy: XattrPolicy, path: bytes) -> dict[str, bytes]:
    return policy.select(place[1].xattrs(place[2]), OVERLAY, path)


@dataclass(slots=True)
class Node(stack.Node):
    """A name of a layer; there are no descriptors."""

    place: Place | None = None

    @property
    def is_directory(self) -> bool:
        """See :class:`stack.Node`."""
        return self.place is not None and self.place[2].is_directory

    def readlink(self) -> bytes:
        """See :class:`stack.Node`."""
        assert self.place is not None
        return self.place[1].readlink(self.place[2])

    def attributes(self, view: object, policy: XattrPolicy) -> dict[str, bytes]:
        """See :class:`stack.Node`."""
        assert self.place is not None
        return _attributes(self.place, policy, self.path)


@dataclass(frozen=True, slots=True)
class Found(lookup.Found):
    """An entry that shows in some layers."""

    place: Place

    def readlink(self, name: bytes) -> bytes:
        """See :class:`lookup.Found`."""
        return self.place[1].readlink(self.place[2])

    def attributes(
        self, name: bytes, view: object, policy: XattrPolicy, path: bytes
    ) -> dict[str, bytes]:
        """See :class:`lookup.Found`."""
        return _attributes(self.place, policy, path)


def walk(image: Image) -> Iterator[Node]:
    """Every name of a layer, as :func:`stack.walk` gives them. Raises InvalidArchive.

    The image's number is -1.
    """
    root = (-1, image, image.root)
    yield Node(b"", b"", 0, NodeKind.ENTRY, -1, _status(root), 0, place=root)
    seen = {image.root.nid}
    levels = [(_names(image, image.root), b"", False)]
    while levels:
        names, prefix, cut = levels[-1]
        if not names:
            levels.pop()
            continue
        name, inode = names.pop()
        path, depth = prefix + name, len(levels)
        if inode.is_whiteout:
            if not cut:
                yield Node(path, name, depth, NodeKind.WHITEOUT, -1, None, 0)
            continue
        place = (-1, image, inode)
        opaque = inode.is_directory and not cut and _is_opaque(image, inode)
        yield Node(path, name, depth, NodeKind.ENTRY, -1, _status(place), 0, opaque, place=place)
        if inode.is_directory and inode.nid not in seen:
            seen.add(inode.nid)
            levels.append((_names(image, inode), path + b"/", cut or opaque))


def _names(image: Image, directory: Inode) -> list[tuple[bytes, Inode]]:
    """What is in a directory, last first; whiteouts before all else."""
    entries = [(name, image.inode(nid)) for name, nid in image.entries(directory)]
    entries.sort(key=lambda entry: not entry[1].is_whiteout)
    return entries[::-1]


def _is_opaque(image: Image, inode: Inode) -> bool:
    return image.xattrs(inode).get(OPAQUE) == b"y"


class Lookup:
    """The merged view of layers, topmost first, as seen from one directory of it."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._here: list[Place] = [
            (-2 - number, image, image.root) for number, image in enumerate(images)
        ]
        self._above: list[list[Place]] = []

    def find(self, name: bytes) -> Found | None:
        """See :meth:`lookup.Lookup.find`."""
        place = next(self._mentions(name), None)
        return None if place is None else Found(-1, _status(place), place)

    def names(self) -> list[bytes]:
        """See :meth:`lookup.Lookup.names`."""
        shown: dict[bytes, bool] = {}
        for _, image, directory in self._here:
            for name, nid in image.entries(directory):
                shown.setdefault(name, not image.inode(nid).is_whiteout)
        return sorted(name for name, shows in shown.items() if shows)

    def enter(self, name: bytes) -> None:
        """See :meth:`lookup.Lookup.enter`."""
        merged = []
        for place in self._mentions(name):
            if not place[2].is_directory:
                break
            merged.append(place)
            if _is_opaque(*place[1:]):
                break
        self._above.append(self._here)
        self._here = merged

    def leave(self) -> None:
        """See :meth:`lookup.Lookup.leave`."""
        self._here = self._above.pop()

    def _mentions(self, name: bytes) -> Iterator[Place]:
        for number, image, directory in self._here:
            nid = image.lookup(directory, name)
            if nid is None:
                continue
            inode = image.inode(nid)
            if inode.is_whiteout:
                return
            yield number, image, inode
