"""One index for a whole chain of layers, made of the layers' own.

Whiteouts and opaque directories are applied, so that none are left: what the index shows is what a
container stands on, and a mount of it has one layer however many there were. Contents stay where
they are; the devices are those of all the layers. Takes time in proportion to all their entries,
and no tar is read. What shows is the same as in :mod:`lamina.archive.stack`, but that a file which
lost a name to an upper layer has one link less.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from lamina.archive.erofs import format as f
from lamina.archive.erofs.attributes import OPAQUE
from lamina.archive.erofs.image import Image
from lamina.archive.erofs.inode import Inode
from lamina.archive.erofs.node import HOLE_CHUNK, Chunks, Directory, Node, collector_paused
from lamina.archive.erofs.writer import Device, Written, write_index
from lamina.errors import InvalidArchive


def merge_indexes(bottom_up: Sequence[Image], out: int, *, identity: str) -> Written:
    """Write to ``out``, an empty file, the index of layers, the lowest first.

    Its devices are the devices of the first index, then those of the second, and so on: a mount
    gets them in that order. ``identity`` is the ChainID, from which the uuid comes. An index may
    itself be merged. Raises InvalidArchive for one that is damaged or that
    :mod:`lamina.archive.erofs.writer` did not write, LayerUnsupported, OSError.
    """
    root = Directory(None)
    devices: list[Device] = []
    blocks = 0
    with collector_paused():
        for image in bottom_up:
            _Layer(image, blocks).put_on(root)
            devices += [Device(slot.tag, slot.blocks) for slot in image.devices]
            blocks += sum(slot.blocks for slot in image.devices)
        return write_index(root, out, devices, identity)


class _Layer:
    """One layer, whose devices begin at block ``base`` of the merged ones."""

    def __init__(self, image: Image, base: int) -> None:
        self._image = image
        self._shift = base - f.DEVICE_BASE
        self._linked: dict[int, Node] = {}
        end = f.DEVICE_BASE
        for slot in image.devices:
            if slot.start != end:
                raise InvalidArchive("an EROFS index whose devices do not follow one another")
            end += slot.blocks
        self._end = end

    def put_on(self, root: Directory) -> None:
        """Let the layer's entries win over those of the tree ``root``."""
        image = self._image
        top = image.root
        self._describe(root, top)
        pending = [(top, root)]
        seen = {top.nid}
        while pending:
            inode, directory = pending.pop()
            children = directory.children
            for name, nid in image.entries(inode):
                child = image.inode(nid)
                if child.is_directory:
                    if nid in seen:
                        raise InvalidArchive("an EROFS directory in two places")
                    seen.add(nid)
                    pending.append((child, self._directory(child, directory, name)))
                elif child.is_whiteout:
                    children.pop(name, None)
                else:
                    children[name] = self._file(child)

    def _directory(self, inode: Inode, parent: Directory, name: bytes) -> Directory:
        """The directory of the tree that an inode becomes, new or with what is below."""
        found = parent.children.get(name)
        xattrs = self._image.xattrs(inode)
        if not isinstance(found, Directory) or xattrs.get(OPAQUE) == b"y":
            found = parent.children[name] = Directory(parent)
        self._describe(found, inode)
        return found

    def _describe(self, directory: Directory, inode: Inode) -> None:
        xattrs = self._image.xattrs(inode)
        xattrs.pop(OPAQUE, None)
        node = Node(inode.mode, inode.uid, inode.gid, inode.mtime_ns, xattrs=xattrs or None)
        directory.become(node)

    def _file(self, inode: Inode) -> Node:
        """Anything else: one node for each inode."""
        if inode.nlink == 1:
            return self._node(inode)
        node = self._linked.get(inode.nid)
        if node is None:
            node = self._linked[inode.nid] = self._node(inode)
        return node

    def _node(self, inode: Inode) -> Node:
        image = self._image
        data: int | bytes | Chunks = inode.data
        size = 0
        if inode.is_file:
            size = inode.size
            data = self._data(inode) if size else 0
        elif inode.is_symlink:
            data = image.readlink(inode)
        xattrs = image.xattrs(inode) if inode.behind != inode.xattrs_at else None
        return Node(inode.mode, inode.uid, inode.gid, inode.mtime_ns, size, data, xattrs)

    def _data(self, inode: Inode) -> int | Chunks:
        if inode.layout == f.PLAIN:
            return self._shifted(inode.data, inode.size)
        if inode.layout != f.CHUNKED:
            raise InvalidArchive("an EROFS index that has contents in it")
        bits, table, unit = self._image.chunk_map(inode)
        if unit != 4:
            raise InvalidArchive("an EROFS chunk map of an unknown kind")
        blocks = array("q")
        left = inode.size
        for block in memoryview(bytes(table)).cast("I"):
            length = min(left, 1 << bits)
            blocks.append(HOLE_CHUNK if block == f.HOLE else self._shifted(block, length))
            left -= length
        return Chunks(bits, blocks)

    def _shifted(self, block: int, length: int) -> int:
        last = block + (length + f.BLOCK - 1 >> f.BLOCK_BITS)
        if not f.DEVICE_BASE <= block < last <= self._end:
            raise InvalidArchive("EROFS data beyond the end of the devices")
        return block + self._shift
