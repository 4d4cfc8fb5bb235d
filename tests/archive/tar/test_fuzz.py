"""Round trips of any entry, and archives damaged in any way."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive.tar import END, Entry, Limits, TarReader, TarWriter, Type, encode
from lamina.errors import InvalidArchive
from tests.archive.tar.blocks import GNU, Recorder, Trickle, contents, extended, file, header, pax
from tests.archive.tar.test_sparse import DATA, FORMATS

# --- what is written is read

names = st.binary(min_size=1, max_size=400).filter(lambda name: b"\0" not in name)
short_names = st.binary(max_size=60).filter(lambda name: b"\0" not in name)
numbers = st.one_of(st.integers(0, 2**21 + 1), st.integers(0, 2**32 - 2))
times = st.one_of(st.integers(-(10**10), 2**34), st.integers(-(2**60), 2**62)).flatmap(
    lambda seconds: st.sampled_from([seconds * 10**9, seconds * 10**9 + 123_000_000, seconds])
)
xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=40).filter(lambda n: b"\0" not in n).map(os.fsdecode),
    st.binary(max_size=200),
    max_size=3,
)


@st.composite
def members(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from(Type))
    entry = Entry(
        draw(names),
        kind,
        draw(st.integers(0, 0o7777)),
        draw(numbers),
        draw(numbers),
        mtime_ns=draw(times),
        uname=draw(short_names),
        gname=draw(short_names),
        xattrs=draw(xattrs),
    )
    data = b""
    if kind is Type.DIRECTORY:
        entry.name = entry.name.rstrip(b"/") or b"/"
    elif kind in (Type.SYMLINK, Type.HARDLINK):
        entry.linkname = draw(names)
    elif kind in (Type.CHARACTER, Type.BLOCK):
        entry.devmajor, entry.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1))
    elif kind is Type.FILE:
        entry.name = entry.name.rstrip(b"/") or b"a"
        data = draw(st.binary(max_size=2000))
        entry.size = len(data)
        if draw(st.booleans()):
            gaps = draw(st.lists(st.integers(0, 2**40), min_size=4, max_size=4))
            entry.sparse, entry.size, data = sparse(data, gaps)
    return entry, data


def sparse(data: bytes, gaps: list[int]) -> tuple[tuple[tuple[int, int], ...], int, bytes]:
    segments, position, left = [], 0, len(data)
    for gap in gaps[:3]:
        length = min(512, left)
        if not length:
            break
        position += gap
        segments.append((position, length))
        position += length
        left -= length
    stored = sum(length for _, length in segments)
    last_is_whole = not segments or segments[-1][1] % 512 == 0
    return tuple(segments), position + (gaps[3] if last_is_whole else 0), data[:stored]


def written(found: list[tuple[Entry, bytes]]) -> bytes:
    sink = io.BytesIO()
    writer = TarWriter(sink)
    for entry, data in found:
        writer.add(entry, [data])
    writer.close()
    return sink.getvalue()


def fields(entry: Entry) -> list[object]:
    ignored = ("stored_size", "offset")
    return [getattr(entry, f) for f in Entry.__dataclass_fields__ if f not in ignored]


@settings(max_examples=200, deadline=None)
@given(st.lists(members(), max_size=5))
def test_what_is_written_is_read(found: list[tuple[Entry, bytes]]) -> None:
    archive = written(found)
    again = list(contents(archive))
    assert [(fields(e), data) for e, data in again] == [(fields(e), data) for e, data in found]
    assert written(again) == archive


@settings(max_examples=100, deadline=None)
@given(
    st.lists(members(), max_size=4),
    st.lists(st.integers(1, 2000), min_size=1, max_size=6),
    st.booleans(),
)
def test_any_way_to_cut_the_stream_gives_the_same(
    found: list[tuple[Entry, bytes]], pieces: list[int], observed: bool
) -> None:
    archive = written(found)
    observer = Recorder() if observed else None
    reader = TarReader(Trickle(archive, *pieces), observer=observer)
    again = [(entry, b"".join(map(bytes, reader.chunks()))) for entry in reader]
    assert [(fields(e), data) for e, data in again] == [(fields(e), data) for e, data in found]
    if observer is not None:
        assert observer.stream == archive


# --- damage

SAMPLE = (
    pax((b"comment", b"global"), (b"uname", b"all"), flag=b"g")
    + header(b"dir/", b"5")
    + file(b"dir/file", b"data" * 200)
    + pax((b"path", b"long" * 40), (b"mtime", b"-1.5"), (b"SCHILY.xattr.user.a", b"b"))
    + file(b"short", b"x" * 600)
    + extended(b"n" * 150 + b"\0", b"L", b"././@LongLink")
    + header(b"n" * 100, b"2", link=b"to", magic=GNU)
    + b"".join(make([512, 512, 4096, 1024, 8000, 0], 8000, DATA) for make in FORMATS)
    + header(b"hard", b"1", link=b"dir/file", size=20)
    + header(b"device", b"3")
    + END
)
LIMITS = Limits(extended_header=1 << 16, records=50, name=1000, sparse_segments=50)


def survives(archive: bytes, scratch: Path | None = None) -> None:
    """Reads to the end or to InvalidArchive, in time, and the observer sees no byte twice."""
    observer = Recorder()
    reader = TarReader(io.BytesIO(archive), observer=observer, limits=LIMITS)
    count = 0
    try:
        for entry in reader:
            count += 1
            assert entry.name
            assert 0 <= entry.stored_size <= 2**63
            if scratch is not None and entry.type is Type.FILE and entry.size < 1 << 30:
                with scratch.open("wb") as sink:
                    reader.copy_to(sink.fileno())
            # What was read can be written, if it is within what a ustar header can say.
            if entry.devmajor | entry.devminor < 1 << 20:
                try:
                    encode(entry)
                except ValueError as error:
                    assert "sparse map" in str(error)
    except InvalidArchive as error:
        assert len(str(error)) < 1000
        assert archive.startswith(observer.stream)
    else:
        assert observer.stream == archive
    assert count <= len(archive) // 512


def mend(archive: bytearray) -> bytes:
    """Set right the checksum of whatever looks like a header, so that damage goes deeper."""
    for start in range(0, len(archive) - 511, 512):
        block = archive[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(archive)


def test_the_sample_is_sound() -> None:
    assert len(list(contents(SAMPLE))) == 9
    assert mend(bytearray(SAMPLE)) == SAMPLE


def test_every_truncation_of_the_sample_survives() -> None:
    for length in range(0, len(SAMPLE), 7):
        survives(SAMPLE[:length])


interesting = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from(
        [b"\xff" * 12, b"\x80" + bytes(11), b"7" * 12, b"-1", b"99999999999", b"\0", b"\n", b"=",
         b" ", b"x", b"g", b"S", b"L", b"K", b"M", b"D", b"1", b"0 a=b\n", b"18446744073709551616"]
    ),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), interesting), min_size=1, max_size=6),
    st.booleans(),
)
def test_bytes_changed_anywhere_survive(changes: list[tuple[int, bytes]], mended: bool) -> None:
    archive = bytearray(SAMPLE)
    for position, data in changes:
        archive[position : position + len(data)] = data
    del archive[len(SAMPLE) :]
    survives(mend(archive) if mended else bytes(archive))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(SAMPLE) // 512 - 1), max_size=60))
def test_blocks_in_any_order_survive(order: list[int]) -> None:
    survives(b"".join(SAMPLE[512 * n : 512 * n + 512] for n in order))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_bytes_of_any_kind_survive(data: bytes) -> None:
    survives(data)
    survives(extended(data) + file(b"a") + END)
    survives(extended(data, b"g") + file(b"a") + END)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_long_run_of_damage_survives(tmp_path: Path) -> None:
    seed = int(os.environ.get("LAMINA_FUZZ_SEED", "0")) or random.randrange(2**32)
    chance = random.Random(seed)
    print(f"LAMINA_FUZZ_SEED={seed}")
    tokens = [b"\xff" * 12, b"\x80" + bytes(11), b"7" * 11, b"-1", b"9" * 19, b"\0", b"\n", b"="]
    for _ in range(30_000):
        archive = bytearray(SAMPLE)
        for _ in range(chance.randint(1, 8)):
            position = chance.randrange(len(archive))
            data = chance.choice(tokens) if chance.random() < 0.4 else chance.randbytes(1)
            archive[position : position + len(data)] = data
        if chance.random() < 0.2:
            del archive[chance.randrange(len(archive)) :]
        survives(mend(archive) if chance.random() < 0.8 else bytes(archive), tmp_path / "scratch")
