"""Which attributes belong to a layer."""

from __future__ import annotations

import pytest

from lamina.archive.attributes import LEFT_OUT
from lamina.archive.xattrs import DEFAULT_POLICY, to_container
from lamina.errors import UnmappedId
from lamina.kernel.idmap import IdMap, IdRange

IDMAP = IdMap((IdRange(0, 1000, 10),), (IdRange(0, 2000, 10),))


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("user.mime_type", True),
        ("trusted.note", True),
        ("security.capability", True),
        ("system.posix_acl_access", True),
        ("system.posix_acl_default", True),
        ("trusted.overlay.opaque", False),
        ("user.overlay.opaque", False),
        ("security.selinux", False),
        ("security.ima", False),
        ("system.nfs4_acl", False),
        ("btrfs.compression", False),
    ],
)
def test_the_table(name: str, kept: bool) -> None:
    assert DEFAULT_POLICY.keeps(name) is kept


def test_what_unpacking_would_leave_out_is_not_packed() -> None:
    assert not [name for name in LEFT_OUT if DEFAULT_POLICY.keeps(name)]


def test_a_capability_of_version_2_has_no_id() -> None:
    value = bytes.fromhex("0100000200040000000000000000000000000000")
    assert to_container({"security.capability": value}, IDMAP) == {"security.capability": value}


def test_an_id_without_a_place_inside_is_an_error() -> None:
    acl = b"\2\0\0\0" + b"\2\0\4\0" + (7).to_bytes(4, "little")
    with pytest.raises(UnmappedId):
        to_container({"system.posix_acl_access": acl}, IDMAP)
