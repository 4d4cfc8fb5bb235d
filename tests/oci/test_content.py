"""Blobs are verified while they are read."""

from __future__ import annotations

import hashlib
import io

import pytest

from lamina.errors import DigestMismatch, InvalidImage
from lamina.oci.content import verified
from lamina.oci.descriptor import Descriptor, described
from lamina.oci.digest import check_digest
from lamina.types import Digest

DATA = b"some bytes" * 1000


@pytest.mark.parametrize("data", [b"", DATA])
def test_what_has_its_digest_is_read(data: bytes) -> None:
    with verified(io.BytesIO(data), described(data, "x")) as stream:
        assert stream.read() == data
        assert stream.read() == b""


def test_a_sha512_digest_is_verified() -> None:
    digest = Digest("sha512:" + hashlib.sha512(DATA).hexdigest())
    with verified(
        io.BytesIO(DATA), Descriptor(media_type="x", digest=digest, size=len(DATA))
    ) as stream:
        assert stream.read() == DATA


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (DATA[:-1] + b"x", DigestMismatch),
        (DATA[:-1], InvalidImage),
        (DATA + b"x", InvalidImage),
        (b"", InvalidImage),
    ],
)
@pytest.mark.parametrize("step", [1000, 4096, 1 << 20])
def test_what_is_not_as_described_is_refused(
    data: bytes, error: type[Exception], step: int
) -> None:
    with verified(io.BytesIO(data), described(DATA, "x")) as stream, pytest.raises(error):
        while stream.read(step):
            pass


def test_exactly_the_size_is_enough_to_find_out() -> None:
    """Who reads the size and no more must not miss the error."""
    with (
        verified(io.BytesIO(b"x" * len(DATA)), described(DATA, "x")) as stream,
        pytest.raises(DigestMismatch),
    ):
        stream.readinto(memoryview(bytearray(len(DATA))))


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "1" * 32, "../x"])
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage):
        check_digest(text)
