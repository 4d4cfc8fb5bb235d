from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest

from lamina.archive.tar import END, Entry, TarReader, TarWriter, Type, encode, padding
from tests.archive.tar.blocks import OnlyRead, contents, only

SECOND = 10**9


def is_ustar(archive: bytes) -> bool:
    return len(archive) == 512 and archive[257:265] == b"ustar\x0000"


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"a"),
        Entry(b"n" * 100),
        Entry(b"p" * 155 + b"/" + b"n" * 100),
        Entry(b"d/" * 127 + b"n"),
        Entry(b"p" * 155 + b"/" + b"n" * 99, Type.DIRECTORY),
        Entry(b"/" + b"p" * 50 + b"/" + b"n" * 60),
        Entry(b"caf\xe9/\xff"),
        Entry("café".encode()),
        Entry(b"a", mode=0o7777, uid=0o7777777, gid=0o7777777, size=0o77777777777),
        Entry(b"a", mtime_ns=0o77777777777 * SECOND),
        Entry(b"a", uname=b"u" * 31, gname=b"g" * 31),
        Entry(b"a", Type.SYMLINK, linkname=b"t" * 100),
        Entry(b"a", Type.HARDLINK, linkname=b"\xfe"),
        Entry(b"a", Type.CHARACTER, devmajor=4095, devminor=1048575),
        Entry(b"a", Type.BLOCK, devmajor=8),
        Entry(b"a", Type.FIFO),
    ],
)
def test_what_fits_is_plain_ustar(entry: Entry) -> None:
    archive = encode(entry)
    assert is_ustar(archive)
    assert same(entry, read_header(archive))


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"n" * 101),
        Entry(b"n" * 255),
        Entry(b"p" * 155 + b"/" + b"n" * 101),
        Entry(b"p" * 156 + b"/" + b"n" * 100),
        Entry(b"/" + b"n" * 100),
        Entry(b"n" * 100, Type.DIRECTORY),
        Entry(b"d/" * 2000 + b"\xff", gname=b"\xe9" * 32),
        Entry(b"a", uid=2**21, gid=2**32 - 2),
        Entry(b"a", size=8 << 30),
        Entry(b"a", size=2**63 - 1),
        Entry(b"a", mtime_ns=1),
        Entry(b"a", mtime_ns=-1),
        Entry(b"a", mtime_ns=-SECOND),
        Entry(b"a", mtime_ns=1 << 80),
        Entry(b"a", uname=b"u" * 32, gname="ü".encode() * 200),
        Entry(b"a", Type.SYMLINK, linkname=b"t" * 101),
        Entry(b"a", Type.SYMLINK, linkname=b"\xff" * 4000),
        Entry(
            b"a",
            xattrs={"user.a=b%": b"\0\n", "security.capability": bytes(20), "user.\udcff": b""},
        ),
        Entry(b"a", pax={"atime": b"1.5", "comment": b"x"}),
    ],
)
def test_what_does_not_fit_has_a_pax_header(entry: Entry) -> None:
    archive = encode(entry)
    assert archive[156:157] == b"x"
    assert len(archive) % 512 == 0
    assert same(entry, read_header(archive))


def read_header(archive: bytes) -> Entry:
    """Read an entry from headers that no payload follows."""
    return next(TarReader(OnlyRead(archive)))


def same(written: Entry, found: Entry) -> bool:
    fields = [f for f in Entry.__dataclass_fields__ if f not in ("stored_size", "offset")]
    return all(getattr(written, f) == getattr(found, f) for f in fields)


def test_the_bytes_stay_what_they_are() -> None:
    entry = Entry(
        b"dir/" + b"n" * 120, mtime_ns=1_500_000_000_250_000_000, uid=3_000_000, size=1 << 20,
        xattrs={"user.b": b"2", "user.a": b"1"}, sparse=((4096, 512),),
    )  # fmt: skip
    again = Entry(**{f: getattr(entry, f) for f in Entry.__dataclass_fields__})
    again.xattrs = dict(reversed(entry.xattrs.items()))
    assert encode(entry) == encode(again)
    assert hashlib.sha256(encode(Entry(b"a"))).hexdigest() == (
        "3fce70286bce2d1e3aee32b153742dd2c3954e47254a63c8ae2545d27b268ac5"
    )
    assert hashlib.sha256(encode(entry)).hexdigest() == (
        "b125970b6a79400fff60b95042d1b3eb503d2fcadb4a0ba02bba7ec32d77a8e0"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"name": b""},
        {"name": b"a\0b"},
        {"name": b"a", "linkname": b"a\0b"},
        {"name": b"a", "uname": b"a\0b"},
        {"name": b"a", "uid": -1},
        {"name": b"a", "gid": 2**32 - 1},
        {"name": b"a", "size": -1},
        {"name": b"a", "size": 2**63},
        {"name": b"a", "devminor": 2**21},
        {"name": b"a", "xattrs": {"": b""}},
        {"name": b"a", "xattrs": {"a\0": b""}},
        {"name": b"a", "pax": {"path": b"b"}},
        {"name": b"a", "pax": {"SCHILY.xattr.user.a": b"b"}},
        {"name": b"a", "pax": {"GNU.sparse.major": b"1"}},
        {"name": b"a", "pax": {"a=b": b"b"}},
        {"name": b"a", "pax": {"": b"b"}},
    ],
)
def test_what_no_archive_can_hold_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        encode(Entry(**fields))


def test_only_files_have_a_size() -> None:
    assert read_header(encode(Entry(b"d", Type.DIRECTORY, size=4096))).stored_size == 0


def test_padding_fills_the_last_block() -> None:
    assert [len(padding(n)) for n in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]


def test_a_writer_takes_pieces_and_open_files(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"a" * 512 + bytes(7680) + b"b" * 300)
    sink = io.BytesIO()
    writer = TarWriter(sink)
    writer.add(Entry(b"d", Type.DIRECTORY, mode=0o755))
    writer.add(Entry(b"pieces", size=5), [b"he", memoryview(b"llo")])
    with path.open("rb") as stream:
        stream.read(3)
        writer.add(Entry(b"file", size=8492), stream.fileno())
        writer.add(Entry(b"sparse", size=8492, sparse=((0, 512), (8192, 300))), stream.fileno())
    writer.close()
    assert sink.getvalue().endswith(END)
    found = {entry.name: data for entry, data in contents(sink.getvalue())}
    assert found == {
        b"d": b"",
        b"pieces": b"hello",
        b"file": path.read_bytes(),
        b"sparse": b"a" * 512 + b"b" * 300,
    }


def test_content_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"12345")
    writer = TarWriter(io.BytesIO())
    for content in ([b"12345", b"6"], [b"1234"], []):
        with pytest.raises(ValueError, match="has not the 5 bytes"):
            writer.add(Entry(b"a", size=5), content)
    with path.open("rb") as stream, pytest.raises(ValueError, match="has not the 6 bytes"):
        writer.add(Entry(b"a", size=6), stream.fileno())


def test_a_pax_headers_own_name_tells_of_its_entry() -> None:
    assert encode(Entry(b"some/dir/" + b"n" * 120)).startswith(b"PaxHeaders.0/nnn")
    assert only(encode(Entry(b"d" * 120, Type.DIRECTORY)) + END).name == b"d" * 120
