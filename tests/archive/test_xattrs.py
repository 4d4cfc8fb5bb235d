"""Which attributes a layer tar carries, and that they come back as they went."""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive.lookup import Lookup
from lamina.archive.pack import PackOptions, pack
from lamina.archive.tar import Entry, TarReader
from lamina.archive.unpack import unpack
from lamina.archive.whiteout import AUFS, OVERLAY, OVERLAY_USER, PLAIN, STAGED, Format, View
from lamina.archive.xattrs import ALL, PORTABLE, RULES, Scope, XattrPolicy, rule, to_container
from lamina.errors import UnmappedId
from lamina.kernel import xattr
from lamina.kernel.idmap import IdMap, IdRange
from tests.archive.layers import make, overlay
from tests.archive.tars import directory, file, unpacked
from tests.support import need, run

IDMAP = IdMap((IdRange(0, 1000, 10),), (IdRange(0, 2000, 10),))
VIEWS = [PLAIN, STAGED, AUFS, OVERLAY, OVERLAY_USER]
MARKS = ("opaque", "redirect", "metacopy", "origin", "whiteout", "impure", "uuid", "overlay.opaque")


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("user.mime_type", Scope.PORTABLE),
        ("trusted.note", Scope.PORTABLE),
        ("security.capability", Scope.PORTABLE),
        ("system.posix_acl_access", Scope.PORTABLE),
        ("system.posix_acl_default", Scope.PORTABLE),
        ("trusted.overlay.opaque", Scope.ALL),
        ("user.overlay.opaque", Scope.ALL),
        ("security.ima", Scope.ALL),
        ("security.selinux", Scope.NEVER),
        ("security.SMACK64EXEC", Scope.NEVER),
        ("security.evm", Scope.NEVER),
        ("trusted.SGI_ACL_FILE", Scope.NEVER),
        ("system.nfs4_acl", Scope.NEVER),
        ("btrfs.compression", Scope.NEVER),
    ],
)
def test_the_table(name: str, scope: Scope) -> None:
    assert rule(name).scope is scope
    assert PORTABLE.keeps(name) is (scope is Scope.PORTABLE)
    assert ALL.keeps(name) is (scope is not Scope.NEVER)


def test_every_exception_has_its_reason_and_no_rule_is_dead() -> None:
    for number, line in enumerate(RULES):
        assert bool(line.why) is (line.scope is not Scope.PORTABLE)
        earlier = [other.prefix for other in RULES[:number]]
        assert not line.prefix.startswith(tuple(earlier))


prefixes = st.sampled_from(
    [line.prefix for line in RULES]
    + ["user.", "trusted.overlay.", "trusted.overlay.overlay.", "user.overlay.overlay."]
    + ["user.fuseoverlayfs.", "trusted.overlayx."]
)
names = st.builds(
    str.__add__, prefixes, st.sampled_from(MARKS) | st.text("abo.", min_size=1, max_size=20)
)


@given(name=names, view=st.sampled_from(VIEWS))
def test_names_on_disk_and_in_the_tar_are_inverse(name: str, view: View) -> None:
    on_disk = view.disk_xattr(name)
    if on_disk is not None:
        assert view.content_xattr(on_disk) == name
        assert not view.private_xattr(on_disk), "what is unpacked is no mark"
    inside = view.content_xattr(name)
    assert (inside is None) == view.private_xattr(name)
    if inside is not None:
        assert view.disk_xattr(inside) in (name, None)


settable = st.builds(
    str.__add__,
    st.sampled_from(
        [
            *("user.", "user.overlay.", "user.overlay.overlay.", "security.note."),
            *("trusted.", "trusted.overlay.", "trusted.overlay.overlay."),
        ]
    ),
    st.sampled_from(MARKS) | st.text("abo.", min_size=1, max_size=20),
)


def packed(top: Path, fmt: Format, policy: XattrPolicy) -> dict[str, bytes]:
    """What a layer's tar has on its entry "e"."""
    chunks = pack([top], fmt=fmt, options=PackOptions(xattrs=policy))
    tar = io.BytesIO(b"".join(bytes(chunk) for chunk in chunks))
    return next(dict(entry.xattrs) for entry in TarReader(tar) if entry.name == b"e")


def fail(warning: str) -> None:
    raise AssertionError(warning)


@pytest.mark.root
@given(
    attributes=st.dictionaries(settable, st.binary(max_size=40), max_size=6),
    fmt=st.sampled_from([STAGED, OVERLAY, OVERLAY_USER]),
    make_entry=st.sampled_from([file, directory]),
)
@settings(max_examples=80, deadline=None)
def test_what_is_unpacked_and_packed_again_is_the_same(
    attributes: dict[str, bytes], fmt: Format, make_entry: Callable[..., tuple[Entry, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as directory_name:
        top = Path(directory_name, "layer")
        unpacked(top, make_entry("e", xattrs=dict(attributes)), fmt=fmt, warn=fail)
        assert packed(top, fmt, ALL) == attributes
        kept = {name: value for name, value in attributes.items() if PORTABLE.keeps(name)}
        assert packed(top, fmt, PORTABLE) == kept
        with Lookup([top], fmt) as layer:
            assert layer.find(b"e"), "it hides nothing"
            assert make_entry is file or not fmt.is_opaque(descriptor(layer, b"e"))


def descriptor(layer: Lookup, name: bytes) -> int:
    layer.enter(name)
    return layer.fd


@pytest.mark.root
@pytest.mark.parametrize("mark", ["trusted.overlay.opaque", "user.overlay.opaque"])
def test_an_archive_can_not_plant_a_mark(mark: str, tmp_path: Path) -> None:
    """The kernel's overlay shows what is below, and the attribute as one of the content."""
    lower = make(tmp_path / "lower", OVERLAY, "d/below")
    unpacked(tmp_path / "upper", directory("d", xattrs={mark: b"y"}), file("d/here"))
    with overlay(tmp_path / "merged", [tmp_path / "upper", lower]) as merged:
        assert sorted(os.listdir(merged / "d")) == ["below", "here"]
        if kernel() >= (6, 7):
            assert xattr.get(merged / "d", mark) == b"y"


@pytest.mark.root
@pytest.mark.parametrize("name", ["user.fuseoverlayfs.opaque", "trusted.overlay.opaque"])
def test_an_aufs_branch_has_no_name_for_what_fuse_overlayfs_reads(
    name: str, tmp_path: Path
) -> None:
    said: list[str] = []
    entry = directory("d", xattrs={name: b"y", "user.x": b"1"})
    unpacked(tmp_path / "layer", entry, fmt=AUFS, warn=said.append)
    assert xattr.list_all(tmp_path / "layer/d") == {"user.x": b"1"}
    assert said == [
        f"attribute {name} is left out: on disk it would be read as a mark (first at d)"
    ]


@pytest.mark.root
def test_overlayfs_in_overlayfs_survives_the_tar(tmp_path: Path) -> None:
    """A layer made inside of an overlay mount: its marks are content to the outer one."""
    if kernel() < (6, 7):
        pytest.skip("overlayfs has escaped attributes since Linux 6.7")
    lower, upper = make(tmp_path / "lower", OVERLAY, "x"), make(tmp_path / "upper", OVERLAY)
    with overlay(tmp_path / "merged", [lower], upper) as merged:
        make(merged / "nested", OVERLAY, "d/!", "d/f")
        xattr.set(merged / "nested/d/f", "trusted.overlay.origin", b"\0fh")
        assert xattr.get(merged / "nested/d", "trusted.overlay.opaque") == b"y"
    archived = [bytes(c) for c in pack([upper], fmt=OVERLAY, options=PackOptions(xattrs=ALL))]
    (tmp_path / "again").mkdir()
    unpack(io.BytesIO(b"".join(archived)), tmp_path / "again", fmt=OVERLAY)
    with overlay(tmp_path / "merged", [tmp_path / "again", lower]) as merged:
        assert xattr.list_all(merged / "nested/d") == {"trusted.overlay.opaque": b"y"}
        assert xattr.list_all(merged / "nested/d/f") == {"trusted.overlay.origin": b"\0fh"}


@pytest.mark.root
def test_overlayfs_leaves_nothing_of_its_own_in_a_tar(tmp_path: Path) -> None:
    lower, upper = make(tmp_path / "lower", OVERLAY, "d/f"), make(tmp_path / "upper", OVERLAY)
    with overlay(tmp_path / "merged", [lower], upper) as merged:
        (merged / "d/f").write_text("changed")
        (merged / "d/new").mkdir()
    assert any(n.startswith("trusted.overlay.") for n in xattr.list_all(upper / "d/f"))
    archived = b"".join(
        bytes(c) for c in pack([upper], fmt=OVERLAY, options=PackOptions(xattrs=ALL))
    )
    entries = {entry.name: dict(entry.xattrs) for entry in TarReader(io.BytesIO(archived))}
    assert {b"d", b"d/f", b"d/new"} <= entries.keys()
    assert not any(entries.values())


@pytest.mark.root
def test_what_belongs_to_the_machine_is_not_taken_from_an_archive(tmp_path: Path) -> None:
    said: list[str] = []
    names = ["security.selinux", "security.evm", "system.nfs4_acl", "btrfs.compression"]
    entry = file("e", b"x", xattrs=dict.fromkeys(names, b"1"))
    unpacked(tmp_path / "layer", entry, warn=said.append)
    assert xattr.list_all(tmp_path / "layer/e") == {}
    assert {line.split(" is left out: ")[0] for line in said} == {f"attribute {n}" for n in names}


@pytest.mark.root
@pytest.mark.parametrize("reader", ["tar --xattrs", "tar --acls", "bsdtar", "umoci", "lamina"])
def test_acls_and_capabilities_survive_with_each_reader(reader: str, tmp_path: Path) -> None:
    need("setfacl", "getfacl", "setcap")
    top = make(tmp_path / "layer", STAGED, "e", "d/f")
    run("setfacl", "-m", "u:33:rw,g:44:r", top / "e")
    run("setfacl", "-d", "-m", "u:33:rwx", top / "d")
    run("setcap", "cap_net_raw=ep", top / "d/f")
    os.setxattr(top / "e", "user.note", b"\0\xff")
    tar = tmp_path / "layer.tar"
    chunks = pack([top], fmt=STAGED, options=PackOptions(xattrs=ALL))
    tar.write_bytes(b"".join(bytes(chunk) for chunk in chunks))
    out = tmp_path / "out"
    out.mkdir()
    if reader == "tar --xattrs":
        run("tar", "--xattrs", "--xattrs-include=*", "-xpf", tar, "-C", out)
    elif reader == "tar --acls":
        kinds = ("--xattrs-include=user.*", "--xattrs-include=security.*")
        run("tar", "--acls", "--xattrs", *kinds, "-xpf", tar, "-C", out)
    elif reader == "bsdtar":
        need("bsdtar")
        run("bsdtar", "-xpf", tar, "-C", out)
    elif reader == "lamina":
        unpack(io.BytesIO(tar.read_bytes()), out, fmt=STAGED)
    else:
        out = by_umoci(tar, tmp_path)
    for name in ("e", "d", "d/f"):
        assert xattr.list_all(out / name) == xattr.list_all(top / name), name
        listed = ("getfacl", "-n", "--omit-header", "--absolute-names")
        assert run(*listed, out / name).stdout == run(*listed, top / name).stdout


def by_umoci(tar: Path, ground: Path) -> Path:
    """What ``umoci unpack`` makes of an image of one layer."""
    need("umoci")
    image = f"{ground / 'image'}:latest"
    run("umoci", "init", "--layout", ground / "image")
    run("umoci", "new", "--image", image)
    run("umoci", "raw", "add-layer", "--image", image, tar)
    run("umoci", "unpack", "--image", image, ground / "bundle")
    return ground / "bundle/rootfs"


def kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)))


def test_a_capability_of_version_2_has_no_id() -> None:
    value = bytes.fromhex("0100000200040000000000000000000000000000")
    assert to_container({"security.capability": value}, IDMAP) == {"security.capability": value}


def test_an_id_without_a_place_inside_is_an_error() -> None:
    acl = b"\2\0\0\0" + b"\2\0\4\0" + (7).to_bytes(4, "little")
    with pytest.raises(UnmappedId):
        to_container({"system.posix_acl_access": acl}, IDMAP)
