"""Some layers' indexes as one tree, without mounting them: what a layer stands on.

What shows at a path is as in :mod:`lamina.archive.stack`. Costs one look-up a component and layer,
from the top down to the layer that decides; those below it are not even opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from lamina.archive.erofs.attributes import OPAQUE, content_attributes
from lamina.archive.erofs.image import Image
from lamina.archive.erofs.inode import Inode
from lamina.archive.erofs.node import Node


class Found:
    """An inode that shows in some layers, and the image it is in.

    ``opened`` gives that image with its devices, if ``image`` has none.
    """

    def __init__(
        self, image: Image, inode: Inode, opened: Callable[[], Image] | None = None
    ) -> None:
        self.image = image
        self.inode = inode
        self._opened = opened

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
        image = self.image if self._opened is None else self._opened()
        return image.pieces(self.inode)


class Layers:
    """The merged view of layers, topmost first; one merged index does as well.

    ``opened`` gives the image of a number with its devices, where ``images`` have none.
    """

    def __init__(
        self, images: Sequence[Image], opened: Callable[[int], Image] | None = None
    ) -> None:
        self._images = images
        self._opened = opened

    def find(self, path: bytes) -> Found | None:
        """What shows at a clean path (``b""`` is the top), or None; links are not followed."""
        parts = path.split(b"/") if path else []
        for number, image in enumerate(self._images):
            inode, decided = _look(image, parts)
            if inode is not None:
                opened = self._opened
                return Found(image, inode, opened and partial(opened, number))
            if decided:
                return None
        return None

    def names(self) -> list[bytes]:
        """The names that show at the top, sorted."""
        shown: dict[bytes, bool] = {}
        for image in self._images:
            for name, nid in image.entries(image.root):
                shown.setdefault(name, not image.inode(nid).is_whiteout)
        return sorted(name for name, shows in shown.items() if shows)


def _look(image: Image, parts: Sequence[bytes]) -> tuple[Inode | None, bool]:
    """What one layer has at a path; if nothing, whether it hides what lower layers have there."""
    inode, opaque = image.root, False
    for part in parts:
        if not inode.is_directory:
            return None, True
        nid = image.lookup(inode, part)
        if nid is None:
            return None, opaque
        inode = image.inode(nid)
        if inode.is_whiteout:
            return None, True
        opaque = opaque or (inode.is_directory and image.xattrs(inode).get(OPAQUE) == b"y")
    return inode, True
