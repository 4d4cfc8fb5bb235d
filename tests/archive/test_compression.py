"""Streams of every format, whole and damaged, and the threads behind them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.archive.compression import Compression, compress, detect, open_stream
from lamina.archive.compression.formats import BLOCK_SIZE
from lamina.errors import InvalidArchive
from tests.support import need

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLAIN = random.Random(1).randbytes(300_000) + b"lamina " * 200_000 + bytes(100_000)

CHECKED: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
ENCODERS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.NONE: bytes,
    Compression.GZIP: lambda data: gzip.compress(data, 1),
    Compression.ZSTD: lambda data: zstd.compress(data, options=CHECKED),
    Compression.BZIP2: bz2.compress,
    Compression.XZ: lambda data: lzma.compress(data, preset=0),
}
COMPRESSED = [c for c in Compression if c is not Compression.NONE]
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"hello"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def plain(data: bytes) -> bytes:
    with open_stream(io.BytesIO(data)) as stream:
        return stream.readall()


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before, "a thread outlived its stream"


@pytest.mark.parametrize("compression", Compression)
def test_reads_every_format_and_takes_both_digests(compression: Compression) -> None:
    data = ENCODERS[compression](PLAIN)
    with open_stream(io.BytesIO(data)) as stream:
        assert stream.compression is compression
        assert stream.readall() == PLAIN
        assert stream.digest == sha256(data)
        assert stream.diff_id == sha256(PLAIN)
        assert (stream.compressed_size, stream.size) == (len(data), len(PLAIN))


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("content", [b"", b"x", bytes(3)])
def test_tiny_and_empty_content(compression: Compression, content: bytes) -> None:
    assert plain(ENCODERS[compression](content)) == content


@pytest.mark.parametrize("tool", ["gzip", "zstd", "bzip2", "xz"])
def test_reads_what_the_formats_own_tools_write(tool: str, tmp_path: Path) -> None:
    need(tool)
    path = tmp_path / "file"
    path.write_bytes(PLAIN)
    done = subprocess.run([tool, "-1", "-c", path], capture_output=True, check=True)
    with open_stream(io.BytesIO(done.stdout)) as stream:
        assert stream.compression == tool
        assert stream.readall() == PLAIN


def test_a_file_name_that_begins_like_bzip2_is_plain() -> None:
    assert detect(b"BZh9-notes.txt") is Compression.NONE


@pytest.mark.parametrize("compression", COMPRESSED)
def test_members_one_after_the_other_are_one_stream(compression: Compression) -> None:
    encode = ENCODERS[compression]
    data = encode(PLAIN) + encode(b"") + encode(b"tail")
    assert plain(data) == PLAIN + b"tail"


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
def test_ten_thousand_small_members(compression: Compression) -> None:
    parts = [b"%d" % i for i in range(10_000)]
    assert plain(b"".join(map(ENCODERS[compression], parts))) == b"".join(parts)


def test_skippable_zstd_frames_hold_nothing() -> None:
    frame = zstd.compress(b"data")
    assert detect(SKIPPABLE) is Compression.ZSTD
    assert plain(SKIPPABLE + frame + SKIPPABLE + frame + SKIPPABLE) == b"datadata"


def test_a_gzip_header_with_every_field_may_come_byte_by_byte() -> None:
    header = bytes([0x1F, 0x8B, 8, 2 | 4 | 8 | 16, 1, 2, 3, 4, 0, 3])
    header += struct.pack("<H", 4) + b"xtra" + b"name\0" + b"a comment\0"
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    body = zlib.compress(b"zz", wbits=-15) + struct.pack("<II", zlib.crc32(b"zz"), 2)

    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(1)

    with open_stream(Trickle(header + body + header + body)) as stream:
        assert stream.readall() == b"zzzz"


@pytest.mark.parametrize("compression", COMPRESSED)
def test_zero_padding_after_the_end_is_ignored_but_part_of_the_digest(
    compression: Compression,
) -> None:
    data = ENCODERS[compression](PLAIN) + bytes(3_000_000)
    with open_stream(io.BytesIO(data)) as stream:
        assert stream.readall() == PLAIN
        assert stream.digest == sha256(data)


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.BZIP2])
def test_trailing_garbage_is_ignored_where_the_tool_ignores_it(compression: Compression) -> None:
    data = ENCODERS[compression](PLAIN) + b"garbage" * 100_000
    with open_stream(io.BytesIO(data)) as stream:
        assert stream.readall() == PLAIN
        assert stream.digest == sha256(data)


@pytest.mark.parametrize("compression", [Compression.ZSTD, Compression.XZ])
def test_trailing_garbage_is_an_error_where_the_tool_fails(compression: Compression) -> None:
    with pytest.raises(InvalidArchive, match="followed by other data"):
        plain(ENCODERS[compression](PLAIN) + b"garbage")


def strictly(data: bytes) -> bytes:
    with open_stream(io.BytesIO(data), trailing="refuse") as stream:
        return stream.readall()


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("rest", [b"\0", bytes(3_000_001), b"g", b"garbage" * 100_000, b"\0g"])
def test_what_follows_the_end_can_be_refused(compression: Compression, rest: bytes) -> None:
    data = ENCODERS[compression](PLAIN)
    with (
        open_stream(io.BytesIO(data + rest), trailing="refuse") as stream,
        pytest.raises(InvalidArchive, match=f"the {compression} stream goes on after its end"),
    ):
        assert stream.readall() == PLAIN
    assert strictly(data) == PLAIN
    with pytest.raises(InvalidArchive, match="truncated"):
        strictly(data[:-1])


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_further_member_is_no_trailing_data(compression: Compression) -> None:
    data = ENCODERS[compression](PLAIN)
    assert strictly(data + data) == PLAIN + PLAIN
    for cut in (1, 5, 9):  # too short to be told what it is
        with pytest.raises(InvalidArchive):
            strictly(data + data[:cut])


def test_padding_that_xz_provides_for_is_not_refused() -> None:
    data = ENCODERS[Compression.XZ](PLAIN)
    assert strictly(data + bytes(4) + data + bytes(600_000)) == PLAIN + PLAIN
    with pytest.raises(InvalidArchive, match="goes on"):
        strictly(data + bytes(2) + data)


def test_zstd_skippable_frames_are_no_trailing_data() -> None:
    assert strictly(ENCODERS[Compression.ZSTD](PLAIN) + SKIPPABLE) == PLAIN


@pytest.mark.parametrize("compression", COMPRESSED)
def test_every_truncation_is_found(compression: Compression) -> None:
    data = ENCODERS[compression](b"short and sweet" * 10)
    for end in range(10, len(data)):
        with pytest.raises(InvalidArchive, match="truncated"):
            plain(data[:end])


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_flipped_byte_is_found(compression: Compression) -> None:
    data = bytearray(ENCODERS[compression](PLAIN))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(InvalidArchive, match=f"the {compression} stream is damaged"):
        plain(bytes(data))


def test_an_error_is_raised_again_at_the_next_read() -> None:
    with open_stream(io.BytesIO(gzip.compress(b"x")[:-1])) as stream:
        for _ in range(2):
            with pytest.raises(InvalidArchive):
                stream.readall()


def test_an_error_of_the_source_is_raised_in_the_reader() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise OSError(5, "Input/output error", "/dev/old")
            return super().read(size)

    with (
        open_stream(Broken(gzip.compress(PLAIN))) as stream,
        pytest.raises(OSError, match="/dev/old"),
    ):
        stream.readall()


def test_the_threads_stay_a_few_blocks_ahead_of_the_reader() -> None:
    source = io.BytesIO(gzip.compress(bytes(200 << 20), 1))
    with open_stream(source) as stream:
        assert stream.read(1) == b"\0"
        time.sleep(0.1)
        assert source.tell() < len(source.getvalue()), "a bomb went off before it was read"


@pytest.mark.parametrize("compression", Compression)
def test_closing_early_ends_the_threads(compression: Compression) -> None:
    data = ENCODERS[compression](bytes(50 << 20))
    for read in (0, 1, BLOCK_SIZE * 3):
        with open_stream(io.BytesIO(data)) as stream:
            stream.read(read)
        with pytest.raises(ValueError, match="closed"):
            stream.read(BLOCK_SIZE)


@pytest.mark.parametrize("wrap", [os.fdopen, lambda fd, mode: os.fdopen(fd, mode, 0)])
def test_closing_ends_a_read_that_waits_on_a_pipe(wrap: Callable[[int, str], io.IOBase]) -> None:
    reading, writing = os.pipe()
    os.write(writing, gzip.compress(PLAIN)[:5000])
    start = time.monotonic()
    with wrap(reading, "rb") as pipe:
        with open_stream(pipe) as stream:  # type: ignore[arg-type]
            time.sleep(0.05)
        assert stream.closed
    os.close(writing)
    assert time.monotonic() - start < 5


def test_what_a_buffered_file_has_read_ahead_is_not_lost(tmp_path: Path) -> None:
    data = gzip.compress(PLAIN)
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as sink:
            sink.write(b"12345" + data)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read(5) == b"12345"
        with open_stream(pipe) as stream:
            assert stream.readall() == PLAIN
    feeder.join()
    path = tmp_path / "file"
    path.write_bytes(b"12345" + data)
    with path.open("rb") as file:
        assert file.read(5) == b"12345"
        with open_stream(file) as stream:
            assert stream.readall() == PLAIN
            assert stream.digest == sha256(data)
        assert not file.closed


def test_a_plain_regular_file_without_digests_is_handed_out_itself(tmp_path: Path) -> None:
    path = tmp_path / "layer.tar"
    path.write_bytes(b"12345" + PLAIN)
    with path.open("rb") as file:
        file.read(5)
        with open_stream(file, digest=None, diff_id=False) as stream:
            assert stream.file is not None
            assert stream.file.read() == PLAIN
    with open_stream(path) as stream:
        assert stream.file is None


def test_paths_and_descriptors_and_plain_objects_are_sources(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(PLAIN))
    with open_stream(path) as stream:
        assert stream.readall() == PLAIN
    fd = os.open(path, os.O_RDONLY)
    with open_stream(fd) as stream:
        assert stream.readall() == PLAIN
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_stream(tmp_path / "absent")


def test_digests_are_those_asked_for() -> None:
    data = gzip.compress(PLAIN)
    with open_stream(io.BytesIO(data), digest="sha512", diff_id=False) as stream:
        with pytest.raises(ValueError, match="not been read"):
            _ = stream.digest
        stream.readall()
        assert stream.digest == f"sha512:{hashlib.sha512(data).hexdigest()}"
        with pytest.raises(ValueError, match="without diff_id"):
            _ = stream.diff_id
    with open_stream(io.BytesIO(PLAIN), digest="sha512") as stream:
        stream.readall()
        assert stream.digest == f"sha512:{hashlib.sha512(PLAIN).hexdigest()}"
        assert stream.diff_id == sha256(PLAIN)


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_reading_in_pieces(size: int) -> None:
    content = PLAIN[:100_000] if size == 1 else PLAIN
    with open_stream(io.BytesIO(gzip.compress(content))) as stream:
        assert b"".join(iter(lambda: stream.read(size), b"")) == content
    with open_stream(io.BytesIO(gzip.compress(content))) as stream:
        buffer, out = bytearray(size), bytearray()
        while count := stream.readinto(buffer):
            out += buffer[:count]
        assert out == content


def chunks_of(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize(
    ("compression", "level", "argv"),
    [
        (Compression.NONE, None, ["cat"]),
        *[(Compression.GZIP, level, ["gzip", "-dc"]) for level in (None, 1, 2, 3, 4, 9)],
        *[(Compression.ZSTD, level, ["zstd", "-dc"]) for level in (None, 1, 19)],
    ],
)
def test_what_is_written_is_read_by_the_formats_own_tool(
    compression: Compression, level: int | None, argv: list[str]
) -> None:
    need(argv[0])
    for content in (b"", PLAIN):
        data = b"".join(compress(chunks_of(content, 99_999), compression, level=level))
        done = subprocess.run(argv, input=data, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == content
        assert plain(data) == content


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
@pytest.mark.parametrize("level", [1, 2, 3, 4, 6, 9])
def test_the_bytes_written_depend_on_content_and_level_alone(
    compression: Compression, level: int
) -> None:
    content = PLAIN * 3
    first = b"".join(compress([content], compression, level=level, threads=1))
    for size, threads in ((512, 1), (1 << 20, 4), (700_001, 3)):
        again = compress(chunks_of(content, size), compression, level=level, threads=threads)
        assert b"".join(again) == first


def test_levels_and_formats_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 9"):
        compress([], Compression.GZIP, level=10)
    with pytest.raises(ValueError, match="1 to 19"):
        compress([], Compression.ZSTD, level=20)
    with pytest.raises(ValueError, match="not written"):
        compress([], Compression.XZ)


def test_an_abandoned_compression_leaves_nothing_running() -> None:
    pieces = compress(chunks_of(PLAIN * 20, 1 << 16), Compression.GZIP, level=9)
    next(pieces)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]


def test_libraries_are_imported_when_their_format_is_met() -> None:
    code = """
import io, sys
from lamina.archive.compression import open_stream
open_stream(io.BytesIO(b'plain'), diff_id=False).close()
print(sorted({'isal', 'zlib_ng', 'bz2', 'lzma', '_zstd', 'backports.zstd'} & set(sys.modules)))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env)
    assert done.stdout.decode().strip() == "[]"
