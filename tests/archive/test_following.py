"""lamina.archive.following."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.archive.following import FollowingHash
from lamina.archive.zeros import PunchedWriter
from lamina.errors import InvalidArchive

MIB = 1 << 20
NOISE = random.Random(1).randbytes(MIB)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [NOISE[:1000]],
        [NOISE] * 50,
        [NOISE, bytes(20 * MIB), NOISE[:7]],
        [NOISE, bytes(20 * MIB)],
        [bytes(20 * MIB)],
    ],
    ids=["empty", "small", "large", "hole", "ends with a hole", "nothing but a hole"],
)
def test_the_digest_is_that_of_the_file(fd: int, pieces: list[bytes]) -> None:
    writer = PunchedWriter(fd)
    with FollowingHash(fd) as digest:
        for piece in pieces:
            for at in range(0, len(piece), MIB):
                writer.write(memoryview(piece)[at : at + MIB])
                digest.wrote(writer.offset)
        writer.finish()
        found = digest.hexdigest(writer.offset)
    assert found == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_what_counts_is_what_the_file_has(fd: int) -> None:
    with FollowingHash(fd) as digest:
        os.pwrite(fd, NOISE, 0)
        digest.wrote(MIB)
        os.pwrite(fd, b"other", 0)
        assert digest.hexdigest(MIB) == hashlib.sha256(b"other" + NOISE[5:]).hexdigest()


def test_a_file_that_became_shorter_has_no_digest(fd: int) -> None:
    os.pwrite(fd, NOISE, 0)
    with (
        FollowingHash(fd) as digest,
        pytest.raises(InvalidArchive, match="became shorter"),
    ):
        digest.hexdigest(MIB + 1)


def test_a_file_that_cannot_be_read_says_so_at_the_end(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, FollowingHash(file.fileno()) as digest:
        for end in range(MIB, 64 * MIB, MIB):
            digest.wrote(end)  # and nobody waits for what does not come
        with pytest.raises(OSError, match="Bad file descriptor"):
            digest.hexdigest(64 * MIB)


def test_no_thread_is_left_where_the_writer_failed(fd: int) -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError), FollowingHash(fd) as digest:
        for number in range(20):
            os.pwrite(fd, NOISE, number * MIB)
            digest.wrote((number + 1) * MIB)
        raise RuntimeError
    assert threading.active_count() == before
