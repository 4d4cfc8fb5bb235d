"""Owners that are mapped: in tars they are ids inside, in mounted trees ids of the host."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lamina.archive import acl
from lamina.drivers import Driver, driver_class
from lamina.errors import DriverUnsupported, UnmappedId
from lamina.kernel.idmap import IdMap, IdRange
from lamina.types import LayerId
from tests import support
from tests.conformance.conftest import Factory
from tests.conformance.trees import entry, facts, tar

pytestmark = pytest.mark.root

BASE, MIDDLE, BOX, COPY = LayerId("base"), LayerId("middle"), LayerId("box"), LayerId("copy")

UIDS = (IdRange(0, 100_000, 1000), IdRange(1000, 300_000, 10))
GIDS = (IdRange(0, 200_000, 2000),)
CAPABILITY = "security.capability"
ACL = "system.posix_acl_access"


@pytest.fixture
def mapped(factory: Factory) -> Driver:
    """A driver with a map of several ranges, users' and groups' not the same."""
    idmap = IdMap(UIDS, GIDS)
    try:
        driver_class(factory.name).probe(factory.home, idmap=idmap)
    except DriverUnsupported as error:
        support.missing(str(error))
    return factory.mapped(idmap)


def owners(root: Path) -> dict[str, tuple[int, int]]:
    """Whose a tree's files are, the top being ``.``."""
    paths = [root, *root.rglob("*")]
    return {
        str(path.relative_to(root)): (path.lstat().st_uid, path.lstat().st_gid) for path in paths
    }


def inside(stream: Any) -> dict[str, tuple[int, int]]:
    """Whose the entries of a tar are; what only marks is left out."""
    with tarfile.open(fileobj=io.BytesIO(stream.read())) as archive:
        return {
            member.name.removeprefix("./").strip("/") or ".": (member.uid, member.gid)
            for member in archive
            if ".wh." not in member.name
        }


def some() -> io.BytesIO:
    """A layer with owners of every kind, and a directory that it does not name."""
    return tar(
        entry("d/", tarfile.DIRTYPE, uid=1, gid=2),
        entry("d/f", uid=999, gid=1999),
        entry("d/far", uid=1009, gid=0),
        entry("link", tarfile.SYMTYPE, linkname="d/f", uid=3, gid=4),
        entry("hard", tarfile.LNKTYPE, linkname="d/f", uid=5000, gid=5000),  # not looked at
        entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3, uid=5, gid=6),
        entry("fifo", tarfile.FIFOTYPE, uid=7, gid=8),
        entry("implied/f"),
    )


SHOWN = {
    ".": (100_000, 200_000),
    "d": (100_001, 200_002),
    "d/f": (100_999, 201_999),
    "d/far": (300_009, 200_000),
    "link": (100_003, 200_004),
    "hard": (100_999, 201_999),
    "null": (100_005, 200_006),
    "fifo": (100_007, 200_008),
    "implied": (100_000, 200_000),
    "implied/f": (100_000, 200_000),
}


@pytest.fixture
def mapped_two(mapped: Driver) -> Driver:
    """BASE, and MIDDLE on it, which hides, replaces and links what is in BASE."""
    mapped.create(BASE)
    mapped.apply_diff(BASE, None, some())
    mapped.create(MIDDLE, BASE)
    more = tar(
        entry("linked", tarfile.LNKTYPE, linkname="d/far"),
        "implied/.wh.f",
        ".wh.fifo",
        entry("implied/new", uid=11, gid=12),
        entry("null", uid=13, gid=14),
    )
    mapped.apply_diff(MIDDLE, BASE, more)
    return mapped


def test_a_tree_shows_ids_of_the_host(mapped: Driver) -> None:
    mapped.create(BASE)
    mapped.apply_diff(BASE, None, some())
    with mapped.mounted(BASE) as root:
        assert owners(root) == SHOWN
    with mapped.diff(BASE) as stream:
        found = inside(stream)
    assert found["d/f"] == (999, 1999)
    assert found["d/far"] == (1009, 0)


def test_a_chain_shows_ids_of_the_host(mapped_two: Driver) -> None:
    expected = {**SHOWN, "linked": SHOWN["d/far"], "implied/new": (100_011, 200_012)}
    expected["null"] = (100_013, 200_014)
    del expected["fifo"], expected["implied/f"]
    with mapped_two.mounted(MIDDLE) as root:
        assert owners(root) == expected
    mapped_two.create_read_write(BOX, MIDDLE)
    with mapped_two.mounted(BOX) as root:
        assert owners(root) == expected
    assert mapped_two.changes(BOX, MIDDLE) == []


def test_a_container_is_written_and_committed(mapped_two: Driver) -> None:
    mapped_two.create_read_write(BOX, MIDDLE)
    with mapped_two.mounted(BOX) as root:
        (root / "d/f").write_text("changed")  # copied up where there is a union
        (root / "d/far").chmod(0o600)
        os.chown(root / "null", 300_001, 200_099)
        (root / "mine").mkdir()
        os.chown(root / "mine", 100_500, 200_500)
        (root / "mine/f").touch()
        os.chown(root / "mine/f", 300_000, 200_000)
        os.chown(root / "link", 100_010, 200_011, follow_symlinks=False)
        shutil.rmtree(root / "implied")
        (root / "implied").mkdir()
        (root / "implied/again").touch()
        for path in (root / "implied", root / "implied/again"):
            os.chown(path, 100_000, 200_000)
        expected = owners(root)
    assert expected["d/f"] == SHOWN["d/f"]
    assert expected["d/far"] == SHOWN["d/far"]
    assert "implied/new" not in expected
    with mapped_two.mounted(BOX) as root:
        before = facts(root)
        assert owners(root) == expected
    said = [str(change) for change in mapped_two.changes(BOX, MIDDLE)]
    assert {"C /d/f", "C /d/far", "C /null", "A /mine/f", "D /implied/new"} <= set(said)
    with mapped_two.diff(BOX, MIDDLE) as stream:
        packed = stream.read()
    ids = inside(io.BytesIO(packed))
    assert ids["d/f"] == (999, 1999)
    assert ids["d/far"] == (1009, 0)
    assert ids["null"] == (1001, 99)
    assert (ids["mine"], ids["mine/f"]) == ((500, 500), (1000, 0))
    assert (ids["link"], ids["implied/again"]) == ((10, 11), (0, 0))
    mapped_two.create(COPY, MIDDLE)
    mapped_two.apply_diff(COPY, MIDDLE, io.BytesIO(packed))
    with mapped_two.mounted(COPY) as root:
        assert owners(root) == expected
        assert facts(root) == before


@pytest.mark.parametrize("against", ["nothing", "an ancestor", "another layer"])
def test_other_differences_have_ids_inside(mapped_two: Driver, against: str) -> None:
    other = {"nothing": None, "an ancestor": BASE, "another layer": LayerId("other")}[against]
    if against == "another layer":
        mapped_two.create(LayerId("other"))
        mapped_two.apply_diff(LayerId("other"), None, tar(entry("d/far", uid=1, gid=1)))
    mapped_two.create_read_write(BOX, MIDDLE)
    with mapped_two.mounted(BOX) as root:
        os.chown(root / "d/far", 300_002, 200_003)
    with mapped_two.mounted(BOX) as root:
        before = facts(root)
    with mapped_two.diff(BOX, other) as stream:
        packed = stream.read()
    assert inside(io.BytesIO(packed))["d/far"] == (1002, 3)
    mapped_two.create(COPY, other)
    mapped_two.apply_diff(COPY, other, io.BytesIO(packed))
    with mapped_two.mounted(COPY) as root:
        assert facts(root) == before


def test_applying_on_top_of_content_maps_once(mapped: Driver) -> None:
    mapped.create(BASE)
    mapped.apply_diff(BASE, None, tar(entry("a", uid=1, gid=1), entry("b", uid=2, gid=2)))
    mapped.apply_diff(BASE, None, tar(entry("b", uid=3, gid=3), entry("c", uid=4, gid=4)))
    with mapped.mounted(BASE) as root:
        assert owners(root) == {
            ".": (100_000, 200_000),
            "a": (100_001, 200_001),
            "b": (100_003, 200_003),
            "c": (100_004, 200_004),
        }
    with mapped.diff(BASE) as stream:
        assert {**inside(stream), ".": ()} == {".": (), "a": (1, 1), "b": (3, 3), "c": (4, 4)}


def capability(root: int | None) -> bytes:
    """cap_net_raw+ep, for root of a namespace (version 3) or of any (2)."""
    version, tail = (0x0200_0000, b"") if root is None else (0x0300_0000, struct.pack("<I", root))
    return struct.pack("<IIIII", version | 1, 1 << 13, 0, 0, 0) + tail


def with_attribute(name: str, value: bytes) -> io.BytesIO:
    records = {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")}
    return tar(entry("f", pax_headers=records))


def test_ids_in_attributes_are_mapped(mapped: Driver) -> None:
    text = "user::rw-,user:1003:r--,group::r--,group:5:rw-,mask::rw-,other::---"
    mapped.create(BASE)
    mapped.apply_diff(BASE, None, with_attribute(ACL, acl.parse(text)))
    mapped.create(MIDDLE, BASE)
    mapped.apply_diff(MIDDLE, BASE, tar("g"))
    mapped.create_read_write(BOX, MIDDLE)
    shown = text.replace("1003", "300003").replace("group:5", "group:200005")
    for id in (BASE, MIDDLE, BOX):
        with mapped.mounted(id) as root:
            found = acl.text(os.getxattr(root / "f", ACL))
            assert found.replace("\n", ",").strip(",") == shown
    with mapped.mounted(BOX) as root:
        (root / "f").write_text("copied up")
        assert acl.text(os.getxattr(root / "f", ACL)).replace("\n", ",").strip(",") == shown
    mapped.create(COPY)
    with mapped.diff(BOX) as stream:
        mapped.apply_diff(COPY, None, stream)
    with mapped.mounted(COPY) as root:
        assert acl.text(os.getxattr(root / "f", ACL)).replace("\n", ",").strip(",") == shown


def test_a_file_capability_counts_for_root_inside(mapped: Driver) -> None:
    mapped.create(BASE)
    mapped.apply_diff(BASE, None, with_attribute(CAPABILITY, capability(None)))
    mapped.create_read_write(BOX, BASE)
    for id in (BASE, BOX):
        with mapped.mounted(id) as root:
            assert os.getxattr(root / "f", CAPABILITY) == capability(100_000)
    with mapped.mounted(BOX) as root:
        os.chmod(root / "f", 0o700)
        assert os.getxattr(root / "f", CAPABILITY) == capability(100_000)
    with mapped.diff(BOX) as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as archive:
        member = next(member for member in archive if member.name.endswith("f"))
        value = member.pax_headers[f"SCHILY.xattr.{CAPABILITY}"]
        assert value.encode("utf-8", "surrogateescape") == capability(None)


NO_PLACE = {
    "user": lambda: tar(entry("f", uid=1010)),
    "group": lambda: tar(entry("f", gid=2000)),
    "directory": lambda: tar(entry("d/", tarfile.DIRTYPE, uid=1010)),
    "top": lambda: tar(entry("./", tarfile.DIRTYPE, uid=1010)),
    "link": lambda: tar(entry("l", tarfile.SYMTYPE, linkname="x", gid=2000)),
    "replaced": lambda: tar(entry("f", uid=1010), entry("f")),
    "acl": lambda: with_attribute(
        ACL, acl.parse("user::r--,user:1010:r--,group::r--,mask::r--,other::---")
    ),
    "capability": lambda: with_attribute(CAPABILITY, capability(1010)),
}


@pytest.mark.allow_log("call failed")
@pytest.mark.parametrize("what", NO_PLACE)
def test_an_owner_that_has_no_place_on_the_host_is_refused(mapped: Driver, what: str) -> None:
    mapped.create(BASE)
    with pytest.raises(UnmappedId, match=r"id (1010|2000) has no place"):
        mapped.apply_diff(BASE, None, NO_PLACE[what]())
    with mapped.mounted(BASE) as root:
        assert owners(root) == {".": (100_000, 200_000)}
    mapped.apply_diff(BASE, None, tar("f"))


def test_an_owner_that_has_no_place_inside_is_not_packed(mapped_two: Driver) -> None:
    mapped_two.create_read_write(BOX, MIDDLE)
    with mapped_two.mounted(BOX) as root:
        (root / "of the host's root").touch()
    with (
        mapped_two.diff(BOX, MIDDLE) as stream,
        pytest.raises(UnmappedId, match="user id 0 of the host"),
    ):
        stream.read()


def test_root_inside_finds_its_way_to_the_tree(mapped_two: Driver) -> None:
    """As a runtime does, which mounts from within the user namespace."""
    mapped_two.create_read_write(BOX, MIDDLE)
    for id in (MIDDLE, BOX):
        with mapped_two.mounted(id) as root:
            for path in (root, *root.parents):
                if path == mapped_two.home.parent:
                    break
                status = path.stat()
                mine = (status.st_uid, status.st_gid)
                assert mine[0] == 100_000 or (mine[1] == 200_000 and status.st_mode & 0o010), path
                assert not status.st_mode & 0o022
                assert path == root or not status.st_mode & 0o007
