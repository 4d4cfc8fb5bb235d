from __future__ import annotations

import pytest

from lamina.archive.tar import Type
from lamina.archive.tar.header import number
from lamina.errors import InvalidArchive
from tests.archive.tar.blocks import END, GNU, V7, header, only, refused


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"000644 \0", 0o644),
        (b"   644 \0", 0o644),
        (b"\0\0  644\0", 0o644),
        (b"77777777", 0o77777777),
        (b"644\0junk", 0o644),
        (b"        ", 0),
        (b"\0" * 8, 0),
        (b"\x80" + b"\0" * 6 + b"\x2a", 42),
        (b"\x80" + b"\0" * 3 + b"\xff\xff\xff\xfe", 2**32 - 2),
        (b"\xff" * 8, -1),
        (b"\xff" * 7 + b"\x00", -256),
        (b"\xbf" + b"\xff" * 7, 2**62 - 1),
        (b"\xc0" + b"\0" * 7, -(2**62)),
    ],
)
def test_a_number_is_octal_or_base_256(field: bytes, value: int) -> None:
    assert number(field) == value


@pytest.mark.parametrize(
    "field", [b"0000648\0", b"0o644\0\0\0", b"-1\0\0\0\0\0\0", b"+7\0\0\0\0\0\0", b"6_4\0\0\0\0\0",
              b"6 4\0\0\0\0\0", b"x" * 8, b"\x01\x02\0\0\0\0\0\0"]
)  # fmt: skip
def test_what_only_python_takes_for_a_number_is_refused(field: bytes) -> None:
    with pytest.raises(InvalidArchive, match="not a number"):
        number(field)


def test_the_sum_of_signed_characters_is_accepted_as_gnu_tar_does() -> None:
    name = "Grüße".encode("latin-1")
    block = header(name)
    signed = sum(block[:148]) + 8 * 32 + sum(block[156:]) - 256 * 2
    assert only(header(name, checksum=b"%06o\0 " % signed) + END).name == name


@pytest.mark.parametrize("checksum", [b"000001\0 ", b"junkjunk", b"\xff" * 8, bytes(8)])
def test_a_wrong_checksum_is_damage(checksum: bytes) -> None:
    refused(header(b"a", checksum=checksum) + END, "not a tar archive")
    error = refused(header(b"a") + header(b"b", checksum=checksum) + END, "wrong checksum")
    assert error.entry is None
    assert "offset 512" in error.why


def test_a_sum_off_by_adlers_modulus_is_damage() -> None:
    right = int(header(b"a")[148:154], 8)
    wrong = b"%06o\0 " % (right + 65521)
    refused(header(b"a", checksum=wrong) + END, "not a tar archive")


def test_a_block_of_high_bytes_is_summed_right() -> None:
    # Above 65521, where Adler-32's halves have wrapped.
    name, link, owner = b"\xff" * 100, b"\xfe" * 100, b"\xff" * 32
    entry = only(header(name, b"2", link=link, uname=owner, gname=owner, tail=b"\xff" * 155) + END)
    assert entry.name == b"\xff" * 155 + b"/" + name
    assert (entry.linkname, entry.uname) == (link, owner)


def test_every_field_is_read() -> None:
    entry = only(
        header(
            b"null", b"3", mode=b"0104755\0", uid=b"0001750\0", gid=b"0000144\0",
            mtime=b"14000000000\0", uname=b"joe", gname=b"users", major=b"0000001\0",
            minor=b"0000003\0", tail=b"dev",
        )
        + END
    )  # fmt: skip
    assert entry.name == b"dev/null"
    assert entry.type is Type.CHARACTER
    assert (entry.mode, entry.uid, entry.gid) == (0o4755, 1000, 100)
    assert entry.mtime_ns == 0o14000000000 * 10**9
    assert (entry.uname, entry.gname) == (b"joe", b"users")
    assert (entry.devmajor, entry.devminor) == (1, 3)


def test_v7_has_neither_owners_names_nor_prefix() -> None:
    entry = only(header(b"a", b"\0", magic=V7, uname=b"joe", tail=b"rest of the block") + END)
    assert (entry.name, entry.uname, entry.type) == (b"a", b"", Type.FILE)


@pytest.mark.parametrize("flag", [b"\0", b"0", b"7"])
def test_a_file_with_a_trailing_slash_is_a_directory(flag: bytes) -> None:
    entry = only(header(b"dir/", flag, magic=V7) + END)
    assert (entry.name, entry.type) == (b"dir", Type.DIRECTORY)


@pytest.mark.parametrize("flag", [b"\0", b"0", b"7", b"Z", b"\xff"])
def test_contiguous_and_unknown_types_are_files(flag: bytes) -> None:
    assert only(header(b"a", flag) + END).type is Type.FILE


def test_gnu_times_are_no_prefix() -> None:
    times = b"14000000000\0" * 2
    assert only(header(b"a", magic=GNU, tail=times) + END).name == b"a"


def test_a_prefix_in_a_gnu_header_is_taken_from_old_docker() -> None:
    assert only(header(b"a", magic=GNU, tail=b"usr/share") + END).name == b"usr/share/a"


def test_star_keeps_times_behind_a_shorter_prefix() -> None:
    tail = b"usr".ljust(131, b"\0") + b"14000000000 " * 2 + bytes(8) + b"tar\0"
    assert only(header(b"a", tail=tail) + END).name == b"usr/a"
    full = b"p" * 131 + b"14000000000 " * 2 + bytes(8) + b"tar\0"
    assert only(header(b"a", tail=full) + END).name == b"p" * 131 + b"/a"


def test_device_fields_matter_for_devices_only() -> None:
    assert only(header(b"a", major=b"garbage!") + END).devmajor == 0
    refused(header(b"a", b"4", major=b"garbage!") + END, "not a number")


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ({"size": b"\xff" * 12}, "size out of range: -1"),
        ({"size": b"\x80" + b"\0" * 3 + b"\x80" + b"\0" * 7}, "size out of range"),
        ({"size": b"0000000000x\0"}, "not a number"),
        ({"size": b"00000000008\0"}, "not a number"),
        ({"uid": b"\xff" * 8}, "id out of range: -1"),
        ({"gid": b"\x80\0\0\0\xff\xff\xff\xff"}, "id out of range: 4294967295"),
        ({"mode": b"rw-r--r-"}, "not a number"),
        ({"mtime": b"\x80" + b"\xff" * 11}, "time out of range"),
    ],
)
def test_a_field_out_of_range_names_its_entry(field: dict[str, bytes], why: str) -> None:
    error = refused(header(b"some/name", **field) + END, why)
    assert error.entry == b"some/name"
