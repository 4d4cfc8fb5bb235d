"""Reading the blob of a layer: nothing that it is said to be is believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from lamina.errors import DigestMismatch, InvalidImage
from lamina.oci import mediatypes
from lamina.oci.digest import parts

if TYPE_CHECKING:
    from lamina.archive.compression import Decompressed
    from lamina.store.transfer.resolving import Part


@contextmanager
def layer_tar(blob: BinaryIO, part: Part) -> Iterator[Decompressed]:
    """The tar in a layer's blob, which the block reads to its end.

    Raises, before the block or after it:
        InvalidImage: the blob has another compression or size than it was said to have.
        DigestMismatch: it has another digest, or its tar another DiffID.
    """
    from lamina.archive.compression import open_stream

    named = part.descriptor
    algorithm, _ = parts(named.digest)
    with open_stream(blob, digest=algorithm, trailing="refuse") as tar:
        if tar.compression != mediatypes.layer_compression(named.media_type):
            raise InvalidImage(
                f"blob {named.digest} is said to be {named.media_type}, "
                f"but its compression is {tar.compression}"
            )
        yield tar
        if tar.compressed_size != named.size:
            raise InvalidImage(
                f"blob {named.digest} has "
                f"{'more' if tar.compressed_size > named.size else 'less'} than the "
                f"{named.size} bytes that it is said to have"
            )
        _check("blob", named.digest, tar.digest)
        _check(f"tar in blob {named.digest}", part.diff_id, tar.diff_id)


def _check(what: str, expected: str, actual: str) -> None:
    if actual != expected:
        raise DigestMismatch(what, expected, actual)
