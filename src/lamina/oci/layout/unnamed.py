"""Manifests that were written without a name."""

from __future__ import annotations

from lamina.oci import mediatypes
from lamina.oci.descriptor import Descriptor
from lamina.oci.manifest import Index, decode_manifest


class Unnamed:
    """Which manifests a target got that neither a name nor an index leads to.

    A layout has to name them at its end all the same, or nobody would find them.
    """

    def __init__(self) -> None:
        self._left: dict[str, Descriptor] = {}
        self._reached: set[str] = set()

    def put(self, descriptor: Descriptor, data: bytes, name: str | None) -> None:
        """A manifest or index was written."""
        if descriptor.media_type in mediatypes.INDEXES:
            index = decode_manifest(data, descriptor.media_type)
            assert isinstance(index, Index)
            self._reached.update(entry.digest for entry in index.manifests)
        if name is None:
            self._left[descriptor.digest] = descriptor
        else:
            self._reached.add(descriptor.digest)

    def take(self) -> list[Descriptor]:
        """Those that are left, in order; afterwards there are none."""
        left = [found for digest, found in self._left.items() if digest not in self._reached]
        self._left.clear()
        return left
