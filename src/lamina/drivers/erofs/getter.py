"""Files of a layer that is a tar, read through its index: no mount and no privilege."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

from lamina.archive.stream import open_chunks

if TYPE_CHECKING:
    from lamina.archive.erofs import Image, Inode

_LINKS = 40


class ImageGetter:
    """See :class:`lamina.drivers.base.FileGetter`."""

    def __init__(self, image: Image, on_close: Callable[[], None]) -> None:
        self._image = image
        self._on_close = on_close
        self._closed = False

    def open(self, name: bytes) -> BinaryIO:
        """See :meth:`FileGetter.open`."""
        inode = self._find(name)
        if inode is None or not inode.is_file:
            raise FileNotFoundError(errno.ENOENT, "not a regular file", os.fsdecode(name))
        return cast(BinaryIO, open_chunks(self._image.pieces(inode)))

    def close(self) -> None:
        """See :meth:`FileGetter.close`."""
        if not self._closed:
            self._closed = True
            self._on_close()

    def _find(self, name: bytes) -> Inode | None:
        """What is at a path. Links on the way are followed within the layer, its top being ``/``;
        one at the end is not, as by openat2(2) with RESOLVE_IN_ROOT and O_NOFOLLOW."""
        image, links = self._image, 0
        at = [image.root]
        parts = name.split(b"/")[::-1]
        while parts:
            part = parts.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                at = at[:-1] or at[:1]
                continue
            nid = image.lookup(at[-1], part) if at[-1].is_directory else None
            if nid is None:
                return None
            inode = image.inode(nid)
            if inode.is_symlink and parts:
                links += 1
                if links > _LINKS:
                    return None
                target = image.readlink(inode)
                if target.startswith(b"/"):
                    at = at[:1]
                parts += target.split(b"/")[::-1]
                continue
            at.append(inode)
        return at[-1]
