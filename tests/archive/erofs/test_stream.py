"""A tar on its way in: written, hashed and indexed at the same time."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest

from lamina.archive.erofs import IndexBuilder, Tee, open_image
from lamina.archive.following import FollowingHash
from lamina.archive.tar import TarReader
from tests.archive.erofs import indexes
from tests.archive.erofs.test_image import ARCHIVE
from tests.archive.trees import differences


def streamed(place: Path, data: bytes) -> tuple[Path, str]:
    """The index of a tar that comes as a stream, and the hash of what came."""
    place.mkdir()
    builder = IndexBuilder(beside=place / "beside")
    with (
        (place / "tar").open("w+b", buffering=0) as tar,
        (place / "index").open("wb") as out,
        FollowingHash(tar.fileno()) as digest,
    ):
        tee = Tee(io.BytesIO(data), tar.fileno(), digest.wrote)
        builder.read(TarReader(tee))
        tee.finish()
        identity = "sha256:" + digest.hexdigest(tee.size)
        builder.finish(out.fileno(), identity=identity, tar_size=tee.size)
    return place / "index", identity


@pytest.mark.parametrize("trailing", [b"", bytes(10_240), b"x"])
def test_a_stream_is_kept_and_indexed(tmp_path: Path, trailing: bytes) -> None:
    data = ARCHIVE + trailing
    index, identity = streamed(tmp_path / "streamed", data)
    assert (tmp_path / "streamed/tar").read_bytes() == data
    assert identity == "sha256:" + hashlib.sha256(data).hexdigest()
    (tmp_path / "whole").write_bytes(data)
    built = indexes.build(tmp_path / "built", tmp_path / "whole")
    beside = tmp_path / "streamed/beside"
    assert beside.read_bytes() == built.devices[1].read_bytes()
    with open_image(index, [tmp_path / "streamed/tar", beside]) as ours, built.open() as other:
        assert differences(indexes.of_image(ours), indexes.of_image(other)) == []
        assert ours.devices[0].tag == identity.removeprefix("sha256:").encode()
        assert ours.uuid != other.uuid


def test_the_uuid_is_the_layers(tmp_path: Path) -> None:
    one, _ = streamed(tmp_path / "one", ARCHIVE)
    two, _ = streamed(tmp_path / "two", ARCHIVE)
    assert one.read_bytes() == two.read_bytes()
    with open_image(one) as image:
        assert image.uuid[6] >> 4 == 8
        assert image.uuid[8] >> 6 == 2


def test_what_is_discarded_leaves_no_descriptor(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    builder = IndexBuilder(beside=tmp_path / "beside")
    builder.read(TarReader(io.BytesIO(ARCHIVE)))
    builder.discard()
    assert set(os.listdir("/proc/self/fd")) == before
