"""Extended attributes, ACLs and owners on their way to a file."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.archive import acl, owners
from lamina.archive.attributes import Attributes
from lamina.archive.placement import clean
from lamina.archive.xattrs import ACL_ACCESS, ACL_DEFAULT, CAPABILITY, to_container
from lamina.errors import InvalidArchive, UnmappedId
from lamina.kernel import xattr
from lamina.kernel.idmap import IdMap, IdRange
from tests import support
from tests.archive.tars import directory, file, unpacked
from tests.archive.trees import describe

IDMAP = IdMap((IdRange(0, 100_000, 65536),), (IdRange(0, 200_000, 65536),))
V2 = bytes.fromhex("0100000200200000000000000000000000000000")
V3_ROOT_0 = bytes.fromhex("010000030020000000000000000000000000000000000000")
TEXT = "user::rw-,user:alice:r-x:1000,group::r--,group::rwx:50,mask::rwx,other::---"


@pytest.mark.root
@pytest.mark.parametrize("record", ["SCHILY.acl.access", "SCHILY.acl.default"])
def test_acl_text_is_what_setfacl_makes_of_it(tmp_path: Path, record: str) -> None:
    support.need("setfacl")
    (tmp_path / "expected").mkdir(mode=0o755)
    default = ["-d"] if record.endswith("default") else []
    text = TEXT.replace("alice:r-x:1000", "1000:r-x").replace("group::rwx:50", "group:50:rwx")
    subprocess.run(["setfacl", *default, "--set", text, tmp_path / "expected"], check=True)
    expected = xattr.list_all(tmp_path / "expected")
    assert expected == {acl.RECORDS[record]: acl.parse(TEXT)}
    unpacked(tmp_path / "l", directory("d", 0o670, pax={record: TEXT.encode()}), file("d/f", b"x"))
    tree = describe(tmp_path / "l")
    assert tree[b"d"]["xattrs"] == expected
    assert tree[b"d/f"]["xattrs"] == {}  # made before the default ACL was set
    assert tree[b"d/f"]["mode"] == "0o100644"


@pytest.mark.parametrize(
    "text", ["", "user", "user:alice:r--", "nobody::r--", "user::rq-", "user::r--:x", "a:b:c:d:e"]
)
def test_what_is_no_acl_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        acl.parse(text)


@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "group"]), st.integers(0, 2**32 - 2), st.integers(0, 7)),
        unique_by=lambda entry: entry[:2],
    )
)
def test_text_is_the_inverse_of_parse(named: list[tuple[str, int, int]]) -> None:
    lines = [f"{kind}:{number}:{rights(bits)}" for kind, number, bits in named]
    value = acl.parse(",".join(["user::rwx", "group::r-x", "mask::rw-", "other::---", *lines]))
    assert acl.parse(acl.text(value)) == value


def rights(bits: int) -> str:
    return "".join(letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))


@pytest.mark.parametrize("value", [b"", b"\2\0\0\0x", b"\1\0\0\0", b"\2\0\0\0" + bytes(9)])
def test_bytes_that_are_no_acl_are_refused(value: bytes) -> None:
    policy = Attributes(owners.Root(IDMAP), print)
    if value:
        with pytest.raises(InvalidArchive):
            policy.wanted({ACL_ACCESS: value}, b"f")
    else:  # what tools write for "none"
        assert policy.wanted({ACL_ACCESS: value}, b"f") == {}


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        (CAPABILITY, V2, V3_ROOT_0[:-4] + (100_000).to_bytes(4, "little")),
        (
            CAPABILITY,
            V3_ROOT_0[:-4] + (7).to_bytes(4, "little"),
            V3_ROOT_0[:-4] + (100_007).to_bytes(4, "little"),
        ),
        (
            ACL_ACCESS,
            acl.parse(TEXT),
            acl.parse(TEXT.replace("1000", "101000").replace(":50", ":200050")),
        ),
        ("user.x", b"1000", b"1000"),
    ],
)
def test_ids_inside_of_values_are_mapped_and_back(name: str, inside: bytes, outside: bytes) -> None:
    policy = Attributes(owners.Root(IDMAP), print)
    assert policy.wanted({name: inside}, b"f") == {name: outside}
    assert to_container({name: outside}, IDMAP) == {name: inside}
    plain = Attributes(owners.Root(IdMap()), print)
    assert plain.wanted({name: inside}, b"f") == {name: inside}


def test_unmapped_ids_in_values_are_errors() -> None:
    policy = Attributes(owners.Root(IDMAP), print)
    value = acl.parse(TEXT.replace("1000", "70000"))
    with pytest.raises(UnmappedId):
        policy.wanted({ACL_ACCESS: value}, b"f")


def test_one_warning_a_kind() -> None:
    said: list[str] = []
    policy = Attributes(owners.Root(IdMap()), said.append)
    for number in range(50):
        policy.wanted({f"system.nfs4.{number}": b"", "security.selinux": b""}, b"f")
    assert len(said) == 2 and all("first at f" in line for line in said)


@pytest.mark.root
def test_root_is_told_what_it_can_not_set(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    refused = {"user.big": bytes(70_000)}
    with pytest.raises(OSError) as caught:
        Attributes(owners.Root(IdMap()), print).apply(os.fsencode(tmp_path / "f"), refused, b"f")
    assert caught.value.errno in (errno.E2BIG, errno.ENOSPC, errno.ERANGE)


def test_owners_go_by_the_map() -> None:
    policy = owners.Root(IDMAP)
    assert policy.of(0, 0) == (100_000, 200_000)
    assert policy.of(1000, 50) == (101_000, 200_050)
    assert owners.Single(IDMAP).of(1000, 50) is None
    with pytest.raises(UnmappedId):
        policy.of(65_536, 0)
    for uid in (-1, 2**32 - 1):
        with pytest.raises(InvalidArchive):
            owners.Root(IdMap()).of(uid, 0)


def test_the_umask_is_read_without_changing_it() -> None:
    before = os.umask(0o027)
    try:
        assert owners.umask() == 0o027
    finally:
        assert os.umask(before) == 0o027


@pytest.mark.parametrize(
    ("name", "path"),
    [(b"a/b", b"a/b"), (b"//a/./b/", b"a/b"), (b".", b""), (b"/", b""), (b"..a/...", b"..a/...")],
)
def test_names_are_cleaned_as_text(name: bytes, path: bytes) -> None:
    assert clean(name) == path


@pytest.mark.parametrize("name", [b"..", b"a/..", b"a/../b", b"/..", b"a\0b", b"x/" * 3000])
def test_names_that_are_not_below_the_root_are_refused(name: bytes) -> None:
    with pytest.raises(InvalidArchive):
        clean(name)


@pytest.mark.root
@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"user." + "x" * 251: b"y"}, "longer than"),
        ({"user.x": b"y" * (64 * 1024 + 1)}, "longer than"),
        ({ACL_DEFAULT: acl.parse("u::rwx,g::r-x,o::r-x")}, "directories alone"),
        ({CAPABILITY: b"x"}, "malformed"),
    ],
)
def test_attributes_that_no_file_can_have_are_the_archives_fault(
    tmp_path: Path, attributes: dict[str, bytes], why: str
) -> None:
    with pytest.raises(InvalidArchive, match=why) as caught:
        unpacked(tmp_path / "l", file("d/f", b"x", xattrs=attributes))
    assert caught.value.entry == b"d/f"
