from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.archive.tar import Limits, Type
from lamina.archive.tar.pax import Extension, encode, nanoseconds, parse
from lamina.errors import InvalidArchive
from tests.archive.tar.blocks import (
    END,
    GNU,
    contents,
    entries,
    extended,
    file,
    header,
    only,
    padded,
    pax,
    record,
    refused,
)


def parsed(body: bytes) -> dict[str, bytes]:
    extension = Extension()
    parse(body, extension, Limits())
    return extension.values


@pytest.mark.parametrize(
    "body",
    [
        b"0 a=b\n",
        b"5 a=b\n",
        b"7 a=b\n",
        b"6 a=b",
        b"6 a=bx",
        b"6 =ab\n",
        b"6 aab\n",
        b" a=b\n",
        b"+6 a=b\n",
        b"-6 a=b\n",
        b"0x6 a=b\n",
        b"6_0 a=b\n",
        b"99999999999999999999999999999 a=b\n",
        b"9223372036854775807 a=b\n",
        b"6\ta=b\n",
        b"6",
        b"\n",
        b"6 a=b\n\n",
        b"6 a=b\n\0\0",
        b"\xff\xfe",
        b"7 a\0=b\n",
        b"7 =a=b\n",
    ],
)
def test_a_record_that_lies_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArchive, match="malformed pax record"):
        parsed(body)
    error = refused(extended(body, name=b"PaxHeaders/motd") + file(b"motd") + END, "pax record")
    assert error.entry == b"PaxHeaders/motd"


def test_values_may_hold_anything_and_the_last_one_counts() -> None:
    body = record(b"a", b"1") + record(b"b", b"x=y\n5 c=d\n\0") + record(b"a", b"2")
    assert parsed(body) == {"a": b"2", "b": b"x=y\n5 c=d\n\0"}


@given(st.dictionaries(st.text(min_size=1).filter(lambda k: not set(k) & set("=\0")), st.binary()))
def test_records_come_back_as_written(values: dict[str, bytes]) -> None:
    values = {key: value for key, value in values.items() if not key.startswith("GNU.sparse.")}
    assert parsed(encode(values)) == values


@pytest.mark.parametrize("length", [1, 5, 6, 92, 93, 94, 991, 992, 993, 9989, 9990, 9991])
def test_a_length_counts_its_own_digits(length: int) -> None:
    body = encode({"k": b"v" * length})
    assert int(body.split(b" ")[0]) == len(body)


def test_a_million_records_are_refused_early() -> None:
    body = b"".join(b"13 %d=x\n" % n for n in range(10**6, 10**6 + 80_000))
    refused(extended(body) + file(b"a") + END, "more than 4096 pax records")
    refused(extended(body[: 13 * 300], b"g") + file(b"a") + END, "more than 256 global")
    refused(pax((b"a", b""), (b"b", b"")) + file(b"a") + END, "more than 1", Limits(records=1))


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
def test_an_endless_header_is_refused_unread(flag: bytes) -> None:
    refused(header(b"long", flag, size=2**33 - 1), "extended headers of 8589934591 bytes")


@pytest.mark.parametrize("flag", [b"x", b"g"])
def test_many_headers_together_are_bounded_like_one(flag: bytes) -> None:
    headers = b"".join(pax((b"key%d" % n, bytes(60_000)), flag=flag) for n in range(20))
    refused(headers + file(b"a") + END, "extended headers of 1[0-9]{6} bytes")
    repeated = pax((b"key", bytes(60_000)), flag=b"g") * 20
    assert len(only(repeated + file(b"a") + END).pax["key"]) == 60_000


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"0", 0),
        (b"1.5", 1_500_000_000),
        (b"1.", 1_000_000_000),
        (b"-1.5", -1_500_000_000),
        (b"-0.5", -500_000_000),
        (b"1.123456789999", 1_123_456_789),
        (b"-1.1234567891", -1_123_456_790),
        (b"-1.1234567890", -1_123_456_789),
        (b"9223372036854775807", (2**63 - 1) * 10**9),
    ],
)
def test_times_have_fractions_and_signs(text: bytes, time: int) -> None:
    assert nanoseconds(text) == time
    assert only(pax((b"mtime", text)) + file(b"a") + END).mtime_ns == time


@pytest.mark.parametrize(
    "text", [b"x", b".5", b"1e9", b"1.5e3", b"+1", b" 1", b"--1", b"1.-5", b"1_0", b"nan", b"inf",
             b"9" * 5000, b"9223372036854775808", b"\xd9\xa1"]
)  # fmt: skip
def test_what_is_no_time_is_refused(text: bytes) -> None:
    error = refused(pax((b"mtime", text)) + file(b"a") + END, "not a time|time out of range")
    assert error.entry == b"a"


def test_records_override_the_header() -> None:
    long = b"d/" * 200 + b"\xff\xfe"
    archive = pax(
        (b"path", long), (b"linkpath", b"t" * 300), (b"uid", b"3000000"), (b"gid", b"4294967294"),
        (b"uname", "jürgen".encode()), (b"gname", b"g" * 99), (b"atime", b"1.5"), (b"ctime", b"2"),
        (b"comment", b"no comment"), (b"hdrcharset", b"BINARY"),
    ) + header(b"short", b"2", link=b"short")  # fmt: skip
    entry = only(archive + END)
    assert (entry.name, entry.linkname) == (long, b"t" * 300)
    assert (entry.uid, entry.gid) == (3_000_000, 2**32 - 2)
    assert (entry.uname, entry.gname) == ("jürgen".encode(), b"g" * 99)
    assert entry.pax == {
        "atime": b"1.5", "ctime": b"2", "comment": b"no comment"
    }  # fmt: skip


def test_a_size_record_says_how_much_payload_follows() -> None:
    archive = pax((b"size", b"700")) + header(b"a", size=0) + padded(b"x" * 700) + file(b"b")
    (entry, data), (after, _) = contents(archive + END)
    assert (entry.size, entry.stored_size, data) == (700, 700, b"x" * 700)
    assert after.name == b"b"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (b"size", b"-1", "not a size"),
        (b"size", b"9223372036854775808", "not a size"),
        (b"size", b"9" * 5000, "not a size"),
        (b"size", b"0x10", "not a size"),
        (b"size", b"9223372036854775807", "truncated"),
        (b"uid", b"-1", "not a size"),
        (b"uid", b"4294967295", "id out of range"),
        (b"path", b"a\0b", "NUL"),
        (b"linkpath", b"a\0b", "NUL"),
        (b"uname", b"a\0b", "NUL"),
        (b"path", b"n" * 70_000, "name longer than 65536"),
        (b"SCHILY.xattr.", b"v", "not the name"),
        (b"LIBARCHIVE.xattr.user.a%00b", b"dg", "not the name"),
        (b"LIBARCHIVE.xattr.user.a", b"!!!", "base64"),
        (b"LIBARCHIVE.xattr.user.a", b"A", "base64"),
        (b"SUN.holesdata", b" 0 5", "sparse format unknown"),
        (b"GNU.sparse.major", b"2", "sparse format unknown"),
    ],
)
def test_a_bad_value_names_its_entry(key: bytes, value: bytes, why: str) -> None:
    error = refused(pax((key, value)) + file(b"some/name") + END, why)
    assert error.entry == (value if key == b"path" else b"some/name")
    assert len(str(error)) < 400


def test_records_hold_for_one_entry_only() -> None:
    first, second = entries(pax((b"uid", b"5")) + file(b"a") + file(b"b") + END)
    assert (first.uid, second.uid) == (5, 0)


def test_two_extended_headers_add_up() -> None:
    entry = only(pax((b"uid", b"5"), (b"gid", b"5")) + pax((b"gid", b"6")) + file(b"a") + END)
    assert (entry.uid, entry.gid) == (5, 6)


def test_solaris_extended_headers_are_read() -> None:
    assert only(pax((b"uid", b"5"), flag=b"X") + file(b"a") + END).uid == 5


def test_global_records_hold_until_overridden_or_taken_back() -> None:
    archive = (
        pax((b"uname", b"all"), (b"gid", b"7"), (b"comment", b"c"), flag=b"g")
        + file(b"a")
        + pax((b"uname", b"one"), (b"gid", b""))
        + file(b"b", gid=b"0000011\0")
        + pax((b"uname", b""), flag=b"g")
        + file(b"c", uname=b"own")
    )
    a, b, c = entries(archive + END)
    assert (a.uname, a.gid, a.pax) == (b"all", 7, {"comment": b"c"})
    assert (b.uname, b.gid) == (b"one", 9)
    assert (c.uname, c.gid) == (b"own", 7)


def test_a_global_header_may_end_the_archive_but_an_extended_one_may_not() -> None:
    assert entries(file(b"a") + pax((b"uname", b"x"), flag=b"g") + END)
    refused(file(b"a") + pax((b"uname", b"x")) + END, "truncated")
    refused(file(b"a") + pax((b"uname", b"x")), "truncated")
    refused(file(b"a") + extended(b"name\0", b"L") + END, "truncated")


def test_xattrs_come_from_both_vendors_records() -> None:
    archive = pax(
        (b"LIBARCHIVE.xattr.user.p%25%3D%C3%BC", b64encode(b"\0\1\2\3").rstrip(b"=")),
        (b"LIBARCHIVE.xattr.user.both", b64encode(b"one")),
        (b"SCHILY.xattr.user.both", b"two"),
        (b"SCHILY.xattr.user.empty", b""),
        (b"SCHILY.xattr.user.a%3Db%25", b"\n\0\xff"),
        (b"SCHILY.xattr.user.\xff", b"x"),
        (b"RHT.security.selinux", b"system_u:object_r:etc_t:s0"),
        (b"SCHILY.acl.access", b"user::rw-"),
    )
    entry = only(archive + file(b"a") + END)
    assert entry.xattrs == {
        "user.p%=ü": b"\0\1\2\3",
        "user.both": b"two",
        "user.empty": b"",
        "user.a=b%": b"\n\0\xff",
        "user.\udcff": b"x",
        "security.selinux": b"system_u:object_r:etc_t:s0",
    }
    assert entry.pax == {"SCHILY.acl.access": b"user::rw-"}


def test_device_numbers_by_record() -> None:
    numbers = pax((b"SCHILY.devmajor", b"259"), (b"SCHILY.devminor", b"1048575"))
    entry = only(numbers + header(b"d", b"4") + END)
    assert (entry.type, entry.devmajor, entry.devminor) == (Type.BLOCK, 259, 1048575)
    assert only(numbers + file(b"a") + END).devmajor == 0


def test_gnu_long_names_are_read_and_give_way_to_pax() -> None:
    name, link = b"n" * 300, b"\xfe" * 1200
    long = extended(name + b"\0junk", b"L", b"././@LongLink")
    long += extended(link + b"\0", b"K", b"././@LongLink")
    entry = only(long + header(b"n" * 100, b"2", link=b"l" * 100, magic=GNU) + END)
    assert (entry.name, entry.linkname) == (name, link)
    assert only(long + pax((b"path", b"pax")) + file(b"a") + END).name == b"pax"


def test_a_gnu_name_of_a_mebibyte_names_its_entry() -> None:
    long = extended(b"n" * (1 << 20), b"L", b"././@LongLink")
    error = refused(long + file(b"a") + END, "a name longer than 65536")
    assert error.entry is not None
    assert error.entry.startswith(b"nnn")
    assert len(str(error)) < 400
