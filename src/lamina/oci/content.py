"""Where images are read from and written to, without a store: the two sides of every transfer.

A **source** gives manifests and blobs by descriptor, a **target** takes them: an image layout
(directory or archive), a ``docker save`` archive, a repository of a registry. Content is named by
descriptors alone, so that an image goes from any source to any target the same way::

    found = source.resolve("debian:12")              # a descriptor
    data = read_document(source, found)              # verified, whole
    for layer in Manifest.decode(data).layers:
        if not target.has(layer):
            with verified(source.open(layer), layer) as stream:
                target.put(layer, stream)
    target.put_manifest(found, data, "debian:12")

Nothing that a source gives is trusted: read it through :func:`verified`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from lamina.errors import DigestMismatch, InvalidImage
from lamina.oci.digest import check_digest, hasher
from lamina.oci.manifest import SIZE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from hashlib import _Hash as Hash

    from lamina.oci.descriptor import Descriptor

    class _Raw(io.RawIOBase, BinaryIO):
        """What io's own files are to a type checker."""
else:
    _Raw = io.RawIOBase


class Named(NamedTuple):
    """An image in a layout or archive: its manifest or index, and the names it has there."""

    descriptor: Descriptor
    names: tuple[str, ...]
    """Full names (``docker.io/library/debian:12``); none where it has none."""


class Source(Protocol):
    """Images that can be read."""

    @property
    def description(self) -> str:
        """What it is, for messages: a path, or the name of a repository."""

    def images(self) -> Sequence[Named]:
        """All images there; a registry's repository has no such list and raises RegistryError."""

    def resolve(self, name: str | None) -> Descriptor:
        """The manifest or index of a name; of None the only image there is.

        Raises:
            ImageNotFound: there is none of this name.
            AmbiguousName: None, and there are several.
        """

    def open(self, descriptor: Descriptor, offset: int = 0) -> BinaryIO:
        """The bytes of a blob, manifest or index from ``offset`` on, not verified; close it.

        Raises:
            BlobNotFound: it is not there.
            RegistryError, OSError: it can't be read.
        """

    def close(self) -> None:
        """Give up descriptors and connections."""


class Target(Protocol):
    """A place that images can be written to."""

    @property
    def description(self) -> str:
        """What it is, for messages."""

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there already, or comes from nearby without being sent."""

    def put(
        self,
        descriptor: Descriptor,
        stream: BinaryIO,
        *,
        reopen: Callable[[], BinaryIO] | None = None,
    ) -> None:
        """Write a blob from a stream that is verified while it is read.

        ``reopen``, for targets that may have to begin again, gives the stream from its start.
        Raises what reading raises; then nothing is left of the blob.
        """

    def put_manifest(self, descriptor: Descriptor, data: bytes, name: str | None) -> None:
        """Write a manifest or index once all that it names is there, and let ``name`` be its.

        ``name`` None: it is only named by an index that follows.
        """

    def close(self) -> None:
        """Complete what was written (an archive's end), and give up connections."""


class VerifiedReader(_Raw):
    """Reads a stream that has to have the size and digest of a descriptor.

    The read that reaches the end, and any that goes beyond the size, raises :class:`InvalidImage`
    for another size or :class:`DigestMismatch` for another digest: what was read before counts only
    once the end was reached without an error.
    """

    def __init__(self, stream: BinaryIO, descriptor: Descriptor) -> None:
        super().__init__()
        self.descriptor = descriptor
        self._stream = stream
        self._hash: Hash = hasher(check_digest(descriptor.digest))
        self._left = descriptor.size
        self._checked = False

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read some bytes; see the class for what it raises."""
        # One byte more than there should be: a longer stream is found out at the end.
        data = self._stream.read(min(len(buffer), self._left + 1))
        count = len(data)
        if count > self._left:
            raise InvalidImage(f"blob {self.descriptor.digest} goes on after its size")
        if count:
            self._hash.update(data)
            self._left -= count
            buffer[:count] = data
        if not self._checked and (not count or not self._left):
            self._check(count)
        return count

    def _check(self, count: int) -> None:
        if self._left:
            short = self.descriptor.size - self._left
            raise InvalidImage(
                f"blob {self.descriptor.digest} ends after {short} of {self.descriptor.size} bytes"
            )
        if count and self._stream.read(1):
            raise InvalidImage(f"blob {self.descriptor.digest} goes on after its size")
        actual = f"{self._hash.name}:{self._hash.hexdigest()}"
        if actual != self.descriptor.digest:
            raise DigestMismatch("blob", self.descriptor.digest, actual)
        self._checked = True

    def close(self) -> None:
        """Close the stream too."""
        if not self.closed:
            super().close()
            self._stream.close()


def verified(stream: BinaryIO, descriptor: Descriptor) -> VerifiedReader:
    """``stream``, verified while it is read; closing it closes the stream."""
    return VerifiedReader(stream, descriptor)


def read_document(source: Source, descriptor: Descriptor, limit: int = SIZE_LIMIT) -> bytes:
    """All bytes of a manifest, index or configuration, verified.

    Raises:
        InvalidImage: it is larger than ``limit`` bytes, or not of the size that was said.
        DigestMismatch: it does not have its digest.
        BlobNotFound, RegistryError, OSError: as :meth:`Source.open`.
    """
    if not 0 <= descriptor.size <= limit:
        raise InvalidImage(
            f"{descriptor.digest} is said to have {descriptor.size} bytes (at most {limit})"
        )
    with verified(source.open(descriptor), descriptor) as stream:
        return stream.read()
