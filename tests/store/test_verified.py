"""Tars that are verified while they are read."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest

from lamina.errors import DigestMismatch
from lamina.store.verified import VerifiedTar
from lamina.types import DiffId, LayerId

DATA = os.urandom(3 << 20) + b"\x1f\x8b\x08"
DIFF_ID = DiffId(f"sha256:{hashlib.sha256(DATA).hexdigest()}")


def opened(path: Path, data: bytes, expected: DiffId = DIFF_ID) -> VerifiedTar:
    path.write_bytes(data)
    return VerifiedTar(path.open("rb"), LayerId("layer"), expected)


@pytest.mark.parametrize("size", [1000, 1 << 18, 1 << 22, -1])
def test_all_of_it_is_read_and_the_tar_closed_with_it(tmp_path: Path, size: int) -> None:
    tar = opened(tmp_path / "tar", DATA)
    read = b"".join(iter(lambda: tar.read(size), b""))
    assert read == DATA
    tar.close()
    assert tar._tar.closed


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", b"x" + DATA[1:], b""])
def test_another_tar_is_found_out_at_its_end(tmp_path: Path, wrong: bytes) -> None:
    with opened(tmp_path / "tar", wrong) as tar, pytest.raises(DigestMismatch, match="layer"):
        while tar.read(1 << 20):
            pass


def test_what_begins_like_a_compressed_file_is_taken_as_it_is(tmp_path: Path) -> None:
    import gzip

    packed = gzip.compress(DATA)
    expected = DiffId(f"sha256:{hashlib.sha256(packed).hexdigest()}")
    with opened(tmp_path / "tar", packed, expected) as tar:
        assert io.BufferedReader(tar).read() == packed


def test_closing_it_early_ends_its_threads(tmp_path: Path) -> None:
    with opened(tmp_path / "tar", DATA) as tar:
        assert tar.read(10)
