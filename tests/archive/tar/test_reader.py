from __future__ import annotations

import gzip
import io
import mmap
import os
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from lamina.archive.tar import TarReader, Type
from lamina.archive.tar.source import BUFFER
from lamina.errors import InvalidArchive, NotAnArchive
from tests.archive.tar.blocks import (
    END,
    GNU,
    V7,
    OnlyRead,
    Recorder,
    Trickle,
    contents,
    entries,
    file,
    header,
    only,
    padded,
    pax,
    refused,
)

LARGE = os.urandom(64) * (BUFFER // 64 * 2 + 1000)
SAMPLE = (
    header(b"etc/", b"5")
    + file(b"etc/motd", b"hello\n")
    + pax((b"path", b"p" * 120))
    + file(b"short", LARGE)
    + header(b"link", b"2", link=b"motd")
    + file(b"etc/last", b"x" * 512)
    + END
)
NAMES = [b"etc", b"etc/motd", b"p" * 120, b"link", b"etc/last"]


# --- where an archive ends


def test_two_zero_blocks_end_it_and_the_rest_is_let_go() -> None:
    stream = io.BytesIO(file(b"a") + END + b"trailing" * 100)
    assert [entry.name for entry in TarReader(stream)] == [b"a"]
    assert stream.read() == b""


@pytest.mark.parametrize("end", [b"", bytes(512), END, bytes(10240)])
def test_an_end_between_entries_is_an_end(end: bytes) -> None:
    assert [entry.name for entry in entries(file(b"a", b"data") + end)] == [b"a"]


def test_an_archive_of_nothing_but_its_end_is_empty() -> None:
    assert entries(END) == []
    assert entries(bytes(512)) == []


def test_no_bytes_at_all_are_no_archive() -> None:
    assert refused(b"", "empty").entry is None


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b'print("x")\n', "text"),
        ("Überschrift\n".encode() * 100, "text"),
        (b"PK\x03\x04" + bytes(10), "a ZIP archive"),
        (b"\x7fELF" + bytes(1000), "a program"),
        (bytes([1, 2, 3]), ""),
        (bytes([1]) * 512, ""),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_no_archive_at_all_is_named(head: bytes, what: str, mapped: bool) -> None:
    stream: io.BytesIO | mmap.mmap = io.BytesIO(head)
    if mapped:
        stream = mmap.mmap(-1, len(head))
        stream[:] = head
    with pytest.raises(NotAnArchive) as caught:
        list(TarReader(stream))
    assert caught.value.why == (f"{what}, not a tar archive" if what else "not a tar archive")


def test_data_after_a_lone_zero_block_is_damage() -> None:
    refused(file(b"a") + bytes(512) + file(b"b") + END, "lone zero block at offset 1024")


def test_garbage_after_a_valid_start_is_damage() -> None:
    refused(file(b"a") + b"garbage!" * 64, "wrong checksum at offset 512")


def test_what_is_no_tar_says_so() -> None:
    refused(b"PK\3\4" + b"x" * 2000, "not a tar archive")
    refused(b"short", "text, not a tar archive")


def test_an_end_of_one_and_a_half_blocks_is_damage() -> None:
    refused(file(b"a") + bytes(700), "truncated")


@pytest.mark.parametrize("seekable", [True, False])
def test_truncation_anywhere_is_told(seekable: bool, tmp_path: Path) -> None:
    archive = (
        file(b"first", b"1" * 600)
        + pax((b"path", b"second"), (b"SCHILY.xattr.user.a", b"v"))
        + file(b"x", b"2" * 100)
    )
    # Without an end mark, but between entries; or without padding behind the last one.
    ends = {0: None, 512 + 600: 1, 1536: 1, len(archive) - 412: 2, len(archive): 2}
    path = tmp_path / "cut.tar"
    for length in range(len(archive) + 1):
        if seekable and 1 < length % 512 < 510 and length not in ends:
            continue  # as the other stream has it
        path.write_bytes(archive[:length])
        with path.open("rb") as stream:
            reader = TarReader(stream if seekable else Trickle(archive[:length], 1000))
            if ends.get(length) is None:
                with pytest.raises(InvalidArchive) as caught:
                    list(reader)
                where = [b"first"] if 512 <= length < 1536 else [None, b"PaxHeaders/x", b"second"]
                assert caught.value.entry in where, length
            else:
                assert len(list(reader)) == ends[length]


def test_payload_past_the_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar"
    path.write_bytes(pax((b"size", b"%d" % (2**63 - 1))) + file(b"bomb") + END)
    with path.open("rb") as stream, pytest.raises(InvalidArchive, match="past the archive's end"):
        next(TarReader(stream))
    error = refused(path.read_bytes(), "truncated")
    assert error.entry == b"bomb"


def test_after_an_error_there_is_nothing_more() -> None:
    reader = TarReader(io.BytesIO(file(b"a") + b"garbage!" * 64 + file(b"b") + END))
    next(reader)
    with pytest.raises(InvalidArchive):
        next(reader)
    assert list(reader) == []


# --- kinds of entries


def test_links_directories_and_fifos_have_no_payload_whatever_they_say() -> None:
    archive = b"".join(
        header(b"n%d" % flag, b"%d" % flag, size=512, link=b"to", magic=GNU) for flag in range(1, 7)
    )
    found = list(contents(archive + file(b"after", b"data") + END))
    assert [entry.type for entry, _ in found[:-1]] == [
        Type.HARDLINK, Type.SYMLINK, Type.CHARACTER, Type.BLOCK, Type.DIRECTORY, Type.FIFO
    ]  # fmt: skip
    assert [(entry.size, data) for entry, data in found[:-1]] == [(0, b"")] * 6
    assert found[-1][1] == b"data"


@pytest.mark.parametrize("magic", [V7, GNU])
def test_a_hard_links_size_means_nothing_in_old_archives(magic: bytes) -> None:
    link = header(b"l", b"1", size=5, link=b"a", magic=magic)
    assert [e.size for e in entries(link + file(b"b", magic=magic) + END)] == [0, 0]


def test_a_hard_link_in_a_ustar_archive_has_payload_if_no_header_follows() -> None:
    link = header(b"l", b"1", size=5, link=b"a")
    assert [e.size for e in entries(link + file(b"b") + END)] == [0, 0]
    assert [e.size for e in entries(link + END)] == [0]
    assert [e.size for e in entries(link)] == [0]
    ((entry, data), _) = contents(link + padded(b"12345") + file(b"b") + END)
    assert (entry.type, entry.size, data) == (Type.HARDLINK, 5, b"12345")


def test_a_hard_link_with_a_size_has_payload_in_a_pax_archive() -> None:
    # Even when that looks like a header.
    link = header(b"l", b"1", size=512, link=b"a")
    archive = pax((b"comment", b""), flag=b"g") + link + header(b"inner") + file(b"b")
    assert [e.name for e in entries(archive + END)] == [b"l", b"b"]


def test_a_dumpdir_is_a_directory_whose_list_is_skipped() -> None:
    archive = header(b"d/", b"D", size=20, magic=GNU) + padded(b"Yfile\0Dsub\0\0".ljust(20))
    first, second = entries(archive + file(b"d/file") + END)
    assert (first.name, first.type, first.size) == (b"d", Type.DIRECTORY, 0)
    assert second.name == b"d/file"


def test_a_volume_label_is_skipped() -> None:
    assert only(header(b"My backup", b"V", magic=GNU) + file(b"a") + END).name == b"a"


def test_a_further_volume_is_refused() -> None:
    error = refused(header(b"big", b"M", size=512, magic=GNU) + bytes(512) + END, "multi-volume")
    assert error.entry == b"big"


def test_names_are_as_stored() -> None:
    for name in (b"/abs", b"../up", b"./a//b/.", b"\xff\n\x1b[0m", b"a/"[:-1], b" "):
        assert only(file(name) + END).name == name
    for name, plain in ((b"./", b"."), (b"/", b"/"), (b"a//", b"a"), (b"..", b"..")):
        assert only(header(name, b"5") + END).name == plain


def test_an_entry_without_a_name_is_refused() -> None:
    refused(file(b"") + END, "without a name")


def test_the_same_name_twice_is_two_entries() -> None:
    assert [data for _, data in contents(file(b"a", b"1") + file(b"a", b"2") + END)] == [b"1", b"2"]


# --- content


def test_offsets_point_at_the_payload() -> None:
    for entry, data in contents(SAMPLE):
        assert SAMPLE[entry.offset : entry.offset + entry.stored_size] == data


@pytest.mark.parametrize("pieces", [(1,), (511,), (512, 1, 4096), (65536,), (BUFFER + 512,)])
def test_how_the_stream_is_cut_makes_no_difference(pieces: tuple[int, ...]) -> None:
    archive = SAMPLE.replace(LARGE, LARGE[: 512 * 5]) if pieces == (1,) else SAMPLE
    if pieces == (1,):
        archive = file(b"a", b"1" * 700) + pax((b"path", b"b")) + file(b"x", b"2" * 512) + END
    reader = TarReader(Trickle(archive, *pieces))
    found = [(e.name, b"".join(map(bytes, reader.chunks()))) for e in reader]
    assert found == [(entry.name, data) for entry, data in contents(archive)]


def test_a_stream_with_only_read_will_do() -> None:
    assert [entry.name for entry in TarReader(OnlyRead(SAMPLE))] == NAMES


def test_chunks_left_unread_are_skipped() -> None:
    reader = TarReader(io.BytesIO(SAMPLE))
    names = []
    for entry in reader:
        names.append(entry.name)
        next(reader.chunks(), None)
    assert names == NAMES


def sources(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "sample.tar"
    path.write_bytes(b"before" + SAMPLE)
    (tmp_path / "sample.tar.gz").write_bytes(gzip.compress(SAMPLE, 1))
    return {
        "file": path.open("rb"),
        "unbuffered": path.open("rb", buffering=0),
        "both ways": path.open("r+b"),
        "gzip": gzip.open(tmp_path / "sample.tar.gz"),
        "memory": io.BytesIO(b"before" + SAMPLE),
        "trickle": Trickle(SAMPLE, 3000),
    }


KINDS = ["file", "unbuffered", "both ways", "gzip", "memory", "trickle"]


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_stream_reads_from_where_it_stands(
    kind: str, observed: bool, tmp_path: Path
) -> None:
    streams = sources(tmp_path)
    stream = streams[kind]
    if kind not in ("gzip", "trickle"):
        assert stream.read(6) == b"before"
    observer = Recorder() if observed else None
    reader = TarReader(stream, observer=observer)
    target = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    try:
        for entry in reader:
            if entry.name != b"etc/last":
                reader.copy_to(target)
        assert os.pread(target, 1 << 24, 0) == b"hello\n" + LARGE
    finally:
        os.close(target)
    assert stream.read(1) == b""
    if observer is not None:
        assert observer.stream == SAMPLE
    for stream in streams.values():
        stream.close()


def test_a_file_with_unwritten_bytes_is_read_whole() -> None:
    with tempfile.TemporaryFile() as stream:
        stream.write(SAMPLE)
        stream.flush()
        stream.seek(0)
        assert [entry.name for entry in TarReader(stream)] == NAMES


def test_a_pipe_is_read(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb", buffering=0) as stream:
        with open(write_end, "wb") as sink:
            sink.write(file(b"a", b"data") + END)
        assert [entry.name for entry in TarReader(stream)] == [b"a"]


def test_a_stream_that_would_block_says_so() -> None:
    class Starving:
        def read(self, size: int, /) -> Any:
            return None

    with pytest.raises(BlockingIOError):
        next(TarReader(Starving()))


def test_a_file_cut_while_it_is_read_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "shrinks.tar"
    path.write_bytes(file(b"big", LARGE) + END)
    with path.open("rb") as stream, (tmp_path / "out").open("wb") as out:
        reader = TarReader(stream)
        next(reader)
        os.truncate(path, BUFFER + 4096)
        with pytest.raises(InvalidArchive, match="'big': truncated"):
            reader.copy_to(out.fileno())


def test_copy_to_without_an_entry_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no entry"):
        TarReader(io.BytesIO(SAMPLE)).copy_to(1)


# --- observing


@pytest.mark.parametrize("trailing", [b"", bytes(9000), b"junk" * 1000])
def test_an_observer_sees_every_byte_in_order(trailing: bytes) -> None:
    for stream in (io.BytesIO(SAMPLE + trailing), Trickle(SAMPLE + trailing, 700, 3)):
        observer = Recorder()
        assert [e.name for e in TarReader(stream, observer=observer)] == NAMES
        assert observer.stream == SAMPLE + trailing


def test_an_observer_is_told_of_each_entry() -> None:
    observer = Recorder()
    archive = header(b"d/", b"5") + file(b"a", b"hello") + END
    list(TarReader(io.BytesIO(archive), observer=observer))
    assert observer.calls == [
        ("raw", archive[:512]),
        ("begin", b"d"),
        ("end", b""),
        ("raw", archive[512:1024]),
        ("begin", b"a"),
        ("payload", b"hello"),
        ("end", b""),
        ("raw", bytes(507) + END),
    ]


def test_a_sparse_map_is_observed_as_raw() -> None:
    records = pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9999")
    )
    sparse_map = padded(b"1\n512\n3\n")
    observer = Recorder()
    archive = records + file(b"s", sparse_map + b"abc") + END
    list(TarReader(io.BytesIO(archive), observer=observer))
    assert observer.stream == archive
    assert [data for kind, data in observer.calls if kind == "payload"] == [b"abc"]


# --- memory


def test_memory_does_not_depend_on_the_archive() -> None:
    class Endless:
        """Many entries, each with an extended header and some payload."""

        def __init__(self, count: int) -> None:
            self.left = count
            self.rest = b""

        def read(self, size: int, /) -> bytes:
            if not self.rest and self.left:
                self.left -= 1
                name = b"%d/" % self.left * 20
                self.rest = pax((b"path", name)) + file(b"x", bytes(300_000))
            part, self.rest = self.rest[:size], self.rest[size:]
            return part

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            assert sum(1 for _ in TarReader(Endless(count))) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(500) < peak(20) + 200_000


# --- a mapped file


def _mapped(path: Path, data: bytes) -> mmap.mmap:
    path.write_bytes(data)
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)


def test_a_mapped_file_gives_the_same(tmp_path: Path) -> None:
    mapped = _mapped(tmp_path / "tar", SAMPLE + b"trailing")
    expected = entries(SAMPLE)
    assert list(TarReader(mapped)) == expected
    reader = TarReader(mapped)
    found = [b"".join(bytes(part) for part in reader.chunks()) for _ in reader]
    assert found == [b"", b"hello\n", LARGE, b"", b"x" * 512]


def test_a_mapped_file_cut_anywhere_is_truncated(tmp_path: Path) -> None:
    whole = file(b"a", b"data" * 300) + pax((b"path", b"p" * 120)) + file(b"b", b"x") + END
    for size in range(1, len(whole) - len(END), 100):
        mapped = _mapped(tmp_path / "tar", whole[:size])
        with (tmp_path / "tar").open("rb") as stream:
            assert _outcome(TarReader(mapped)) == _outcome(TarReader(stream)), size


def _outcome(reader: TarReader) -> object:
    try:
        return list(reader)
    except InvalidArchive as error:
        return str(error)
