"""The tar that a driver gives of a layer, verified while it is read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

from lamina.archive.compression import Compression, open_stream
from lamina.errors import DigestMismatch
from lamina.types import DiffId, LayerId

if TYPE_CHECKING:

    class _Raw(io.RawIOBase, BinaryIO):
        """What io's own files are to a type checker."""
else:
    _Raw = io.RawIOBase


class VerifiedTar(_Raw):
    """Reads ``tar``, which is closed with it, ahead of the caller, and hashes it meanwhile.

    The read that finds the end raises DigestMismatch for a tar of another DiffID than ``expected``.
    """

    def __init__(self, tar: BinaryIO, layer: LayerId, expected: DiffId) -> None:
        super().__init__()
        self._tar = tar
        self._layer = layer
        self._expected = expected
        self._stream = open_stream(tar, digest=None, compression=Compression.NONE)

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes, perhaps fewer; nothing at the end only. All, for -1 or None."""
        if size is None or size < 0:
            return self.readall()
        data = self._stream.read(size)
        if not data and size:
            self._check()
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill ``buffer`` with some bytes and say how many; 0 at the end only."""
        count = self._stream.readinto(buffer)
        if not count and len(buffer):
            self._check()
        return count

    def _check(self) -> None:
        actual = self._stream.diff_id
        if actual != self._expected:
            raise DigestMismatch(f"tar of layer {self._layer}", self._expected, actual)

    def close(self) -> None:
        """Close the tar too."""
        if not self.closed:
            super().close()
            self._stream.close()
            self._tar.close()
