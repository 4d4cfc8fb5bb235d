"""Sparse files: chunk maps with holes, and what of them is copied to the file beside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive.erofs.beside import Beside, place
from lamina.archive.erofs.format import BLOCK
from lamina.archive.erofs.node import HOLE_CHUNK, Chunks
from lamina.archive.tar import Entry, Type
from lamina.errors import LayerUnsupported
from tests.archive.erofs import indexes
from tests.archive.tars import MTIME_NS, archive, directory, file
from tests.archive.trees import differences
from tests.support import need, run

pytestmark = pytest.mark.root


def sparse(name: bytes, size: int, *segments: tuple[int, int]) -> tuple[Entry, bytes]:
    content = b"".join(os.urandom(length) for _, length in segments)
    return Entry(name, Type.FILE, size=size, sparse=segments, mtime_ns=MTIME_NS), content


CASES = [
    (0, ()),
    (1, ()),
    (1 << 20, ()),
    (5 << 30, ()),
    (1 << 40, ()),
    (4096, ((0, 4096),)),
    (8192, ((4096, 4096),)),
    (8192, ((0, 4096),)),
    (10_000, ((8192, 1808),)),
    (1 << 20, ((4096, 8192), (65536, 4096), (1 << 19, 1 << 19))),
    (5 << 30, ((0, 4096), (3 << 30, 1 << 20), ((5 << 30) - 512, 512))),
    (400 << 30, ((1 << 30, 512), (300 << 30, 4096))),
    (100_000, ((512, 512), (1536, 1024), (5120, 512), (99_840, 160))),
    (1 << 16, tuple((at, 512) for at in range(0, 1 << 16, 1024))),
]


@pytest.mark.parametrize(("size", "segments"), CASES)
def test_sparse_files_read_as_they_should(
    memory: Path, size: int, segments: tuple[tuple[int, int], ...]
) -> None:
    entry, content = sparse(b"f", size, *segments)
    tar = archive(directory("."), file("a", b"before"), (entry, content), file("z", b"after"))
    index = indexes.build(memory / "index", tar)
    with index.mounted() as root:
        assert (root / "f").stat().st_size == size
        assert (root / "z").read_bytes() == b"after"
        with (root / "f").open("rb") as stream:
            at = 0
            for offset, length in segments:
                assert os.pread(stream.fileno(), length, offset) == content[at : at + length]
                at += length
                if offset + length < size:
                    assert not any(os.pread(stream.fileno(), 1, offset + length))
        if size <= 1 << 20:
            with index.open() as image:
                assert image.read(image.find(b"f")) == (root / "f").read_bytes()
            tree = indexes.facts(indexes.unpacked(memory / "tree", tar))
            assert differences(indexes.facts(root), tree) == []


def test_maps_are_small(memory: Path) -> None:
    tar = archive(directory("."), sparse(b"f", 400 << 30, (1 << 30, 512), (300 << 30, 4096)))
    index = indexes.build(memory / "index", tar)
    assert index.path.stat().st_size < 100_000
    assert sum(path.stat().st_blocks for path in index.devices) < 200


def test_a_sparse_file_larger_than_the_format_has_is_refused(memory: Path) -> None:
    tar = archive(directory("."), sparse(b"f", 1 << 60, (1 << 59, 512)))
    with pytest.raises(LayerUnsupported, match="sparse file"):
        indexes.build(memory / "index", tar)


@pytest.mark.parametrize("form", ["gnu", "pax"])
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_files_of_gnu_tar(memory: Path, form: str, version: str) -> None:
    need("tar")
    source = memory / "source"
    source.mkdir()
    with (source / "f").open("wb") as stream:
        for offset in (0, 1 << 20, 3 << 20):
            stream.seek(offset)
            stream.write(os.urandom(70_000))
        stream.truncate(5 << 20)
    tar = memory / "made.tar"
    options = [f"--sparse-version={version}"] if form == "pax" else []
    run("tar", "-C", source, "--sparse", f"--format={form}", *options, "-cf", tar, ".")
    index = indexes.build(memory / "index", tar)
    expected = indexes.facts(indexes.unpacked(memory / "tree", tar))
    with index.mounted() as root:
        assert differences(indexes.facts(root), expected) == []


pieces = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 3000)), max_size=8)


@settings(max_examples=300, deadline=None)
@given(pieces, st.integers(0, 2000), st.integers(0, 8), st.booleans())
def test_any_map_gives_back_every_byte(
    tmp_path_factory: pytest.TempPathFactory,
    gaps: list[tuple[int, int]],
    tail: int,
    block: int,
    aligned: bool,
) -> None:
    segments = []
    at = 0
    for gap, length in gaps:
        if aligned:
            gap, length = gap // 512 * 512, (length + 511) // 512 * 512
        segments.append((at + gap, length))
        at += gap + length
    size = at + tail
    if not size:
        return
    payload = b"".join(bytes([1 + number]) * length for number, (_, length) in enumerate(segments))
    begin = block * BLOCK
    tar = bytes(begin) + payload + bytes(BLOCK)
    path = tmp_path_factory.getbasetemp() / "beside"
    beside = Beside(path)
    where = place(tuple(segments), size, begin, lambda: [memoryview(payload)], beside)
    beside.close()
    copied = path.read_bytes() if beside.blocks else b""
    path.unlink(missing_ok=True)

    def blocks(first: int, length: int) -> bytes:
        if first == HOLE_CHUNK:
            return bytes(length)
        source, first = (tar, first) if first >= 0 else (copied, ~first)
        return source[first * BLOCK : first * BLOCK + length]

    if isinstance(where, Chunks):
        chunk = 1 << where.bits
        found = b"".join(
            blocks(first, min(chunk, size - number * chunk))
            for number, first in enumerate(where.blocks)
        )
    else:
        found = blocks(where, size)
    expected = bytearray(size)
    done = 0
    for offset, length in segments:
        expected[offset : offset + length] = payload[done : done + length]
        done += length
    assert found == bytes(expected)
