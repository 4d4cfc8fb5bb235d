"""The erofs driver: a layer is its tar, and an index that lets the kernel mount it.

    layers/ID/tar        the layer's tar as it came, uncompressed; nothing is unpacked
    layers/ID/index      an EROFS image whose files are blocks of the tar (archive.erofs)
    layers/ID/beside     contents that are no run of blocks in the tar; only where there are any
    layers/ID/chain      the index of this layer and all below it as one; made ahead or when needed
    layers/ID/facts      its size, as JSON

A layer that was not made of a tar, the top of a container above all, is a directory as with the
overlay driver (drivers.overlay): ``diff``, ``work``, ``merged``. So is one whose tar says what
EROFS has no place for, or that stands on a directory; it keeps its tar beside the directory,
which then is read-only like a tar: what was written into it, the tar would not say.

A chain of tars is mounted as one EROFS, whatever its depth, and overlayfs on top of that for a
container. EROFS mounts are detached: no path leads to them but that of a descriptor, and they go
with the last overlay that stands on them.
"""

from lamina.drivers.erofs.driver import ErofsDriver

__all__ = ["ErofsDriver"]
