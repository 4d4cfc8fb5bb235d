"""Some layers' indexes as one tree, without mounting them: what a layer stands on.

What shows at a path is as in :mod:`lamina.archive.stack`. Costs one look-up a component and layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lamina.archive.erofs.attributes import OPAQUE, content_attributes
from lamina.archive.erofs.image import Image
from lamina.archive.erofs.inode import Inode
from lamina.archive.erofs.node import Node


class Found:
    """An inode that shows in some layers, and the image it is in."""

    def __init__(self, image: Image, inode: Inode) -> None:
        self.image = image
        self.inode = inode

    @property
    def is_directory(self) -> bool:
        """Whether it can be entered."""
        return self.inode.is_directory

    def node(self) -> Node:
        """What it is like: attributes that are no marks, and no place of its content."""
        inode = self.inode
        data: int | bytes = inode.data
        if inode.is_symlink:
            data = self.image.readlink(inode)
        xattrs = content_attributes(self.image.xattrs(inode))
        size = inode.size if inode.is_file else 0
        return Node(inode.mode, inode.uid, inode.gid, inode.mtime_ns, size, data, xattrs)

    def content(self) -> Iterator[bytes | memoryview]:
        """The bytes of a regular file."""
        return self.image.pieces(self.inode)


class Layers:
    """The merged view of layers, topmost first; one merged index does as well."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = images

    def find(self, path: bytes) -> Found | None:
        """What shows at a clean path (``b""`` is the top), or None; links are not followed."""
        here = [Found(image, image.root) for image in self._images]
        for part in path.split(b"/") if path else ():
            here = list(_enter(here, part))
        return here[0] if here else None

    def names(self) -> list[bytes]:
        """The names that show at the top, sorted."""
        shown: dict[bytes, bool] = {}
        for image in self._images:
            for name, nid in image.entries(image.root):
                shown.setdefault(name, not image.inode(nid).is_whiteout)
        return sorted(name for name, shows in shown.items() if shows)


def _enter(directories: Sequence[Found], name: bytes) -> Iterator[Found]:
    """What shows under a name of a directory that is merged of several: the topmost, and the
    directories that merge with it."""
    for directory in directories:
        image = directory.image
        if not directory.is_directory:
            return
        nid = image.lookup(directory.inode, name)
        if nid is None:
            continue
        inode = image.inode(nid)
        if inode.is_whiteout:
            return
        yield Found(image, inode)
        if not inode.is_directory or image.xattrs(inode).get(OPAQUE) == b"y":
            return
