"""``ROOT/blobs/sha256/HEX``: small documents, named by what they contain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lamina.errors import DigestMismatch, StoreError
from lamina.oci.digest import hex_of, sha256
from lamina.types import Digest


class Blobs:
    """The blobs below ``path``. A blob is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path / "sha256"

    @property
    def home(self) -> Path:
        """The directory of the blobs; not there before the first one."""
        return self._path

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
            raise StoreError(f"blob {digest} is missing ({path})") from None
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
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return sha256(data)

    def keep(self, staged: Path, digest: Digest) -> None:
        """Let a staged blob appear, by one rename."""
        os.rename(staged, self.path(digest))

    def remove(self, digest: Digest) -> None:
        """Delete; one that is not there is no error."""
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[Digest]:
        """All blobs, in no order."""
        try:
            names = os.listdir(self._path)
        except FileNotFoundError:
            return
        for name in names:
            yield Digest(f"sha256:{name}")

    def size(self, digest: Digest) -> int:
        """Bytes of one blob; 0 if it is missing."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def path(self, digest: Digest) -> Path:
        """Where it lies, or would lie."""
        return self._path / hex_of(digest)
