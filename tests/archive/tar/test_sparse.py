from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.archive.tar import Entry, Limits, TarReader, encode
from tests.archive.tar.blocks import END, GNU, contents, file, header, only, padded, pax, refused

MAP = ((512, 512), (4096, 1024))
DATA = b"a" * 512 + b"b" * 1024
WHOLE = bytes(512) + b"a" * 512 + bytes(3072) + b"b" * 1024 + bytes(2880)


def numbers(*values: int) -> bytes:
    return b"".join(b"%011o\0" % value for value in values)


def old_gnu(
    pairs: list[int], real_size: int, data: bytes, extensions: list[list[int]] | None = None
) -> bytes:
    extensions = extensions or []
    tail = bytes(386 - 345) + numbers(*pairs).ljust(96, b"\0")
    tail += (b"\1" if extensions else b"\0") + numbers(real_size)
    blocks = header(b"s", b"S", size=len(data), magic=GNU, tail=tail)
    for number, extension in enumerate(extensions, 1):
        more = b"\1" if number < len(extensions) else b"\0"
        blocks += (numbers(*extension).ljust(504, b"\0") + more).ljust(512, b"\0")
    return blocks + padded(data)


def format_0_0(pairs: list[int], size: int, data: bytes) -> bytes:
    records = [
        (b"GNU.sparse.size", b"%d" % size),
        (b"GNU.sparse.numblocks", b"%d" % (len(pairs) // 2)),
    ]
    for offset, length in zip(pairs[::2], pairs[1::2], strict=True):
        records.append((b"GNU.sparse.offset", b"%d" % offset))
        records.append((b"GNU.sparse.numbytes", b"%d" % length))
    return pax(*records) + file(b"s", data)


def format_0_1(pairs: list[int], size: int, data: bytes) -> bytes:
    records = [
        (b"GNU.sparse.size", b"%d" % size),
        (b"GNU.sparse.numblocks", b"%d" % (len(pairs) // 2)),
        (b"GNU.sparse.name", b"s"),
        (b"GNU.sparse.map", b",".join(b"%d" % number for number in pairs)),
    ]
    return pax(*records) + file(b"./GNUSparseFile.1/s", data)


def format_1_0(pairs: list[int], size: int, data: bytes) -> bytes:
    lines = b"".join(b"%d\n" % number for number in (len(pairs) // 2, *pairs))
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"s"),
        (b"GNU.sparse.realsize", b"%d" % size),
    ]
    return pax(*records) + file(b"./GNUSparseFile.1/s", padded(lines) + data)


Make = Callable[[list[int], int, bytes], bytes]
FORMATS: list[Make] = [old_gnu, format_0_0, format_0_1, format_1_0]


@pytest.mark.parametrize("make", FORMATS)
def test_a_map_is_read_and_empty_pieces_are_left_out(make: Make) -> None:
    archive = make([512, 512, 4096, 1024, 8000, 0], 8000, DATA)
    ((entry, data), (after, _)) = contents(archive + file(b"after") + END)
    assert (entry.name, entry.size, entry.sparse) == (b"s", 8000, MAP)
    assert entry.stored_size == len(DATA)
    assert data == DATA
    assert entry.pax == {}
    assert after.name == b"after"


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize(
    ("pairs", "size", "why"),
    [
        ([0, 512, 256, 1024], 8000, "overlaps"),
        ([4096, 512, 0, 1024], 8000, "descends"),
        ([0, 512, 4096, 1024], 5119, "past the file's size"),
        ([0, 512, 2**33 - 1, 1024], 2**33 - 1, "past the file's size"),
        ([0, 512, 4096, 1023], 8000, "1535 bytes over a payload of 1536"),
        ([0, 512, 4096, 2048], 8000, "2560 bytes over a payload of 1536"),
    ],
)
def test_a_map_that_lies_is_refused(make: Make, pairs: list[int], size: int, why: str) -> None:
    archive = make(pairs, size, DATA)
    error = refused(archive + END, why)
    assert error.entry is not None
    assert error.entry.endswith(b"s")


def test_old_gnu_maps_go_on_in_further_blocks() -> None:
    pieces = [(4096 * n, 512) for n in range(50)]
    flat = [number for piece in pieces for number in piece]
    archive = old_gnu(flat[:8], 4096 * 50, b"x" * 512 * 50, [flat[8:50], flat[50:92], flat[92:]])
    ((entry, data), (after, _)) = contents(archive + file(b"after") + END)
    assert entry.sparse == tuple(pieces)
    assert len(data) == 512 * 50
    assert after.name == b"after"


def test_star_gives_a_large_real_size_by_record() -> None:
    archive = pax((b"SCHILY.realsize", b"%d" % 2**40)) + old_gnu([2**33 - 512, 512], 0, b"x" * 512)
    entry = only(archive + END)
    assert (entry.size, entry.sparse, entry.pax) == (2**40, ((2**33 - 512, 512),), {})


def test_too_many_pieces_are_refused() -> None:
    limits = Limits(sparse_segments=2)
    flat = [0, 1, 2, 1, 4, 1]
    for make in FORMATS:
        refused(make(flat, 10, b"xyz") + END, "too many pieces", limits)
    endless = header(b"s", b"S", magic=GNU, tail=bytes(386 - 345) + numbers(*[0] * 8) + b"\1")
    extension = (numbers(*[0] * 42) + b"\1").ljust(512, b"\0")
    refused(endless + extension * 10_000, "too many pieces")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"1\n0\n", "past the payload"),
        (b"x\n", "not a size"),
        (b"-1\n", "not a size"),
        (b"\n", "not a size"),
        (b"9" * 600, "malformed sparse map"),
        (b"9" * 5000, "malformed sparse map"),
        (b"999999999\n", "too many pieces"),
        (b"1\n0\n0", "past the payload"),
        (b"", "past the payload"),
    ],
)
def test_a_broken_map_of_format_1_0_is_refused(body: bytes, why: str) -> None:
    records = pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")
    )
    body = body.ljust(-(-len(body) // 512) * 512, b" " if body.endswith(b"9") else b"\0")
    assert refused(records + file(b"s", body) + END, why).entry == b"s"


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], "without GNU.sparse.realsize"),
        ([(b"GNU.sparse.map", b"0,1")], "without GNU.sparse.size"),
        ([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,1,2")], "malformed"),
        ([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,,1")], "not a size"),
        ([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"3")], "not as long"),
        ([(b"GNU.sparse.numbytes", b"9")], "out of order"),
        ([(b"GNU.sparse.offset", b"9"), (b"GNU.sparse.offset", b"9")], "out of order"),
        ([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"9")], "malformed"),
    ],
)
def test_incomplete_records_are_refused(records: list[tuple[bytes, bytes]], why: str) -> None:
    refused(pax(*records) + file(b"s") + END, why)


def test_a_map_in_a_global_header_is_refused() -> None:
    refused(pax((b"GNU.sparse.offset", b"0"), flag=b"g") + file(b"s") + END, "global header")


@pytest.mark.parametrize(
    ("segments", "size"),
    [(MAP, 8000), ((), 0), ((), 1 << 40), (((0, 700),), 700), (((1 << 40, 512),), (1 << 40) + 512)],
)
def test_what_is_written_is_read(segments: tuple[tuple[int, int], ...], size: int) -> None:
    data = b"x" * sum(length for _, length in segments)
    archive = encode(Entry(b"dir/s", size=size, sparse=segments)) + padded(data)
    ((entry, stored),) = contents(archive + END)
    assert (entry.name, entry.size, entry.sparse, stored) == (b"dir/s", size, segments, data)


@pytest.mark.parametrize(
    ("segments", "size"),
    [
        (((0, 100), (512, 512)), 4096),
        (((0, 512), (256, 512)), 4096),
        (((0, 512),), 500),
        (((0, 0),), 512),
        (((-512, 512),), 4096),
    ],
)
def test_a_map_that_gnu_tar_would_misread_is_not_written(
    segments: tuple[tuple[int, int], ...], size: int
) -> None:
    with pytest.raises(ValueError, match="sparse map"):
        encode(Entry(b"s", size=size, sparse=segments))


@pytest.mark.parametrize("make", FORMATS)
def test_copy_to_leaves_holes(make: Make, tmp_path: Path) -> None:
    archive = make([512, 512, 4096, 1024, 8000, 0], 8000, DATA)
    reader = TarReader(io.BytesIO(archive + END))
    next(reader)
    fd = os.open(tmp_path / "s", os.O_RDWR | os.O_CREAT)
    try:
        reader.copy_to(fd)
        assert os.pread(fd, 10_000, 0) == WHOLE
    finally:
        os.close(fd)
    assert list(reader) == []
