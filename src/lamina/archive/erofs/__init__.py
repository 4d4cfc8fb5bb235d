"""EROFS indexes: a layer's tar, mounted as it is.

An index describes the tree of a layer's uncompressed tar, file data being blocks of the tar; the
kernel mounts the two together (:mod:`lamina.kernel.erofs`) and nothing is unpacked.

=============================== =============================================================
:func:`build_index`             tar -> index
:class:`IndexBuilder`           the same from a stream on its way, see :class:`Tee`
:func:`merge_indexes`           the indexes of a chain of layers -> one index
:func:`open_image`              reading an index without a mount
:class:`Layers`                 some indexes as one tree: what a layer stands on
=============================== =============================================================
"""

from lamina.archive.erofs.builder import Built, IndexBuilder, build_index
from lamina.archive.erofs.image import Image, open_devices, open_image
from lamina.archive.erofs.inode import DeviceSlot, Extent, Inode
from lamina.archive.erofs.layers import Layers
from lamina.archive.erofs.merge import merge_indexes
from lamina.archive.erofs.tee import Tee
from lamina.archive.erofs.writer import Written

__all__ = [
    "Built",
    "DeviceSlot",
    "Extent",
    "Image",
    "IndexBuilder",
    "Inode",
    "Layers",
    "Tee",
    "Written",
    "build_index",
    "merge_indexes",
    "open_devices",
    "open_image",
]
