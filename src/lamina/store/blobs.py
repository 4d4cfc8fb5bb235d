"""``ROOT/blobs/ALGORITHM/HEX``: image configurations, and the blobs of layers that are kept.

Each is named by what it contains.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lamina.errors import DigestMismatch, StoreError
from lamina.oci.digest import parts, sha256
from lamina.types import Digest


class Blobs:
    """The blobs below ``path``. A blob is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def home(self) -> Path:
        """The directory of most blobs; not there before the first one."""
        return self._path / "sha256"

    def read(self, digest: Digest) -> bytes:
        """The content, verified.

        Raises:
            StoreError: no such blob.
            DigestMismatch: the file does not have this digest any more.
        """
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise _missing(digest, path) from None
        actual = sha256(data)
        if actual != digest:
            raise DigestMismatch(f"blob {path}", digest, actual)
        return data

    def stage(self, data: bytes, staged: Path) -> Digest:
        """Write to the file ``staged``, on the same file system, and sync it."""
        with open(staged, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        digest = sha256(data)
        self.prepare(digest)
        return digest

    def prepare(self, digest: Digest) -> None:
        """Make the directory that a blob is to appear in."""
        self.path(digest).parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keep(self, staged: Path, digest: Digest) -> None:
        """Let a staged blob appear, by one rename."""
        os.rename(staged, self.path(digest))

    def open(self, digest: Digest) -> BinaryIO:
        """The content, not verified; close it. :class:`StoreError` if there is no such blob."""
        path = self.path(digest)
        try:
            return path.open("rb")
        except FileNotFoundError:
            raise _missing(digest, path) from None

    def remove(self, digest: Digest) -> None:
        """Delete; one that is not there is no error."""
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[Digest]:
        """All blobs, in no order."""
        for directory in self._path.iterdir() if self._path.is_dir() else ():
            for name in os.listdir(directory):
                yield Digest(f"{directory.name}:{name}")

    def size(self, digest: Digest) -> int:
        """Bytes of one blob; 0 if it is missing."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def path(self, digest: Digest) -> Path:
        """Where it lies, or would lie."""
        return self._path.joinpath(*parts(digest))


def _missing(digest: Digest, path: Path) -> StoreError:
    return StoreError(f"blob {digest} is missing ({path})")
