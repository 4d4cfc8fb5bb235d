"""A layer's tar unpacked: what is in it, metadata, and what takes the place of what."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from lamina.archive.tar import Entry, Type
from lamina.archive.unpack import Unpacked, UnpackOptions, unpack
from lamina.archive.whiteout import AUFS, OVERLAY
from lamina.errors import InvalidArchive, UnmappedId
from lamina.kernel import xattr
from lamina.kernel.idmap import IdMap, IdRange
from tests import support
from tests.archive.tars import (
    MTIME_NS,
    archive,
    device,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
    unpacked,
)
from tests.archive.trees import describe, differences

pytestmark = pytest.mark.root


ALL_OF_IT = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]


def unpack_file(tar: Path, root: Path) -> Unpacked:
    root.mkdir()
    with tar.open("rb") as stream:
        return unpack(stream, root, fmt=OVERLAY)


# --- against GNU tar


def make_tree(top: Path) -> None:
    """One of everything."""
    top.mkdir()
    (top / "dir").mkdir(mode=0o750)
    (top / "dir/file").write_bytes(b"content\n" * 1000)
    (top / "dir/empty").touch()
    os.link(top / "dir/file", top / "link")
    os.symlink("dir/file", top / "symlink")
    os.symlink("/nowhere", top / "dangling")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 0))
    (top / "suid").write_bytes(b"#!/bin/sh\n")
    os.chown(top / "suid", 1000, 2000)
    (top / "suid").chmod(0o6755)
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    (top / "setgid").mkdir()
    os.chown(top / "setgid", 0, 50)
    (top / "setgid").chmod(0o2775)
    (top / "setgid/inside").write_bytes(b"x")
    os.chown(top / "setgid/inside", 0, 0)
    (top / "setgid/below").mkdir()
    (top / "setgid/below").chmod(0o755)
    os.chown(top / "setgid/below", 0, 0)
    (top / "closed").mkdir()
    (top / "closed/inside").write_bytes(b"x")
    (top / "closed").chmod(0)
    (top / "xattr").write_bytes(b"x")
    xattr.set(top / "xattr", "user.text", b"value")
    xattr.set(top / "xattr", "user.binary", bytes(range(256)))
    xattr.set(top / "xattr", "trusted.t", b"t")
    subprocess.run(["setcap", "cap_net_raw+ep", top / "xattr"], check=True)
    xattr.set(top / "dir", "user.on-a-directory", b"")
    subprocess.run(["setfacl", "-m", "u:1000:rw,g:50:r", top / "dir/empty"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx", top / "dir"], check=True)
    with (top / "sparse").open("wb") as sparse:
        sparse.truncate(10 << 20)
        sparse.seek(5 << 20)
        sparse.write(b"data")
    os.mkdir(os.fsencode(top) + b"/latin-\xe9")
    (top / ("n" * 255)).write_bytes(b"long")
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        time = 1_500_000_000_000_000_001 + number * 1_000_000_007
        os.utime(path, ns=(time, time), follow_symlinks=False)
    os.utime(top, ns=(5, 1_234_567_890_987_654_321))


@pytest.mark.parametrize("sparse", [[], ["--sparse"]], ids=["plain", "sparse"])
def test_gnu_tar_and_we_make_the_same_tree(ext4: Path, sparse: list[str]) -> None:
    support.need("tar", "setfacl", "setcap")
    make_tree(ext4 / "tree")
    tar = ext4 / "tree.tar"
    subprocess.run(
        ["tar", "--format=pax", *ALL_OF_IT, *sparse, "-C", ext4 / "tree", "-cf", tar, "."],
        check=True,
    )
    unpack_file(tar, ext4 / "ours")
    assert differences(describe(ext4 / "ours"), describe(ext4 / "tree")) == []
    (ext4 / "theirs").mkdir()
    subprocess.run(["tar", *ALL_OF_IT, "-C", ext4 / "theirs", "-xf", tar], check=True)
    assert differences(describe(ext4 / "ours"), describe(ext4 / "theirs")) == []
    if sparse:
        assert (ext4 / "ours/sparse").stat().st_blocks == (ext4 / "tree/sparse").stat().st_blocks


def test_bsdtar_and_we_make_the_same_tree(ext4: Path) -> None:
    support.need("bsdtar", "setfacl", "setcap")
    make_tree(ext4 / "tree")
    tar = ext4 / "tree.tar"
    subprocess.run(
        ["bsdtar", "--format=pax", "--acls", "--xattrs", "-C", ext4 / "tree", "-cf", tar, "."],
        check=True,
    )
    unpack_file(tar, ext4 / "ours")
    ours, tree = describe(ext4 / "ours"), describe(ext4 / "tree")
    for side in (ours, tree):  # bsdtar stores no trusted attributes
        side[b"xattr"]["xattrs"].pop("trusted.t", None)
    assert differences(ours, tree) == []


def test_the_debian_root_is_as_gnu_tar_unpacks_it(ext4: Path, debian_root: Path) -> None:
    result = unpack_file(debian_root, ext4 / "ours")
    (ext4 / "theirs").mkdir()
    subprocess.run(
        ["tar", *ALL_OF_IT, "-C", ext4 / "theirs", "-xf", debian_root],
        check=True,
    )
    ours = describe(ext4 / "ours")
    assert differences(ours, describe(ext4 / "theirs")) == []
    contents = [about for path, about in ours.items() if about.get("same as") == path]
    assert result.size == sum(about["content"][1] for about in contents if "content" in about)
    assert result.superseded == 0


# --- names


@pytest.mark.parametrize("name", ["./a/b", "/a/b", "a//b", "././/a/./b", "a/b"])
def test_names_are_cleaned(tmp_path: Path, name: str) -> None:
    unpacked(tmp_path / "l", file(name, b"x"))
    assert sorted(describe(tmp_path / "l")) == [b"", b"a", b"a/b"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/../b", "/../x", "..", "a/.."])
def test_dot_dot_is_refused_naming_the_entry(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArchive) as caught:
        unpacked(tmp_path / "l", directory("a"), file(name))
    assert caught.value.entry == name.encode()
    assert sorted(os.listdir(tmp_path)) == ["l"]


@pytest.mark.parametrize(
    "name",
    [b"n" * 256, b"d/" + b"n" * 256 + b"/f", b"n" * 60000, b"d/" * 2100 + b"f", b"."],
    ids=["component", "parent", "huge", "deep", "dot"],
)
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(InvalidArchive):
        unpacked(tmp_path / "l", file(name))


def test_two_thousand_directories_deep_works(tmp_path: Path) -> None:
    name = "/".join("d" * 2040)
    unpacked(tmp_path / "l", file(name + "/f", b"deep"), file("d/f"), file(name + "/f2", b"x"))
    fd = os.open(tmp_path / "l", os.O_RDONLY)
    for _ in range(2040):
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert sorted(os.listdir(fd)) == ["f", "f2"]
    os.close(fd)


def test_the_top_gets_the_metadata_of_its_entry(tmp_path: Path) -> None:
    unpacked(tmp_path / "l", directory("./", 0o1700, uid=7, gid=8), file("f"))
    top = (tmp_path / "l").stat()
    assert (stat.S_IMODE(top.st_mode), top.st_uid, top.st_gid) == (0o1700, 7, 8)
    assert top.st_mtime_ns == MTIME_NS


# --- links in paths


@pytest.mark.parametrize("target", ["real", "/real", "../../real", "real/", "./real/."])
def test_links_of_the_layer_are_followed_within_it(tmp_path: Path, target: str) -> None:
    unpacked(
        tmp_path / "l",
        directory("real"),
        symlink("link", target),
        file("link/f", b"x"),
        file("link/sub/g", b"y"),
    )
    assert (tmp_path / "l/real/f").read_bytes() == b"x"
    assert (tmp_path / "l/real/sub/g").read_bytes() == b"y"
    assert (tmp_path / "l/real").stat().st_mtime_ns == MTIME_NS
    assert (tmp_path / "l/link").is_symlink()


def test_links_out_of_the_layer_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for number, target in enumerate([outside, "../outside", "../../../../../../etc"]):
        with pytest.raises(InvalidArchive, match="symbolic link to nowhere") as caught:
            unpacked(tmp_path / f"l{number}", symlink("link", str(target)), file("link/f", b"x"))
        assert caught.value.entry == b"link/f"
    assert os.listdir(outside) == []


@pytest.mark.parametrize(
    "last",
    [
        directory("x/d"),
        file("x/2", b"x"),
        hardlink("y", "x/1"),
        file("x/.wh.a"),
        symlink("x/s", "t"),
    ],
    ids=lambda last: last[0].name.decode(),
)
def test_no_link_leads_to_where_link_sources_wait(
    tmp_path: Path, last: tuple[Entry, bytes]
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/f").write_bytes(b"lower")
    with pytest.raises(InvalidArchive, match="no part of the layer") as caught:
        unpacked(
            tmp_path / "l",
            hardlink("h", "f"),
            symlink("x", ".wh..wh.aside"),
            last,
            lowers=(tmp_path / "below",),
        )
    assert caught.value.entry == last[0].name


def test_a_link_loop_as_a_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive):
        unpacked(tmp_path / "l", symlink("a", "b"), symlink("b", "a"), file("a/f"))


def test_a_file_as_a_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="'f' is no directory") as caught:
        unpacked(tmp_path / "l", file("f", b"x"), file("f/g"))
    assert caught.value.entry == b"f/g"


def test_a_last_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    unpacked(
        tmp_path / "l",
        symlink("a", str(victim)),
        file("a", b"yours", mode=0o777),
        symlink("b", str(tmp_path)),
        directory("b", 0o700),
        symlink("c", str(victim)),
        hardlink("d", "c"),
    )
    assert victim.read_bytes() == b"mine"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644
    assert (tmp_path / "l/b").is_dir() and not (tmp_path / "l/b").is_symlink()
    assert os.readlink(tmp_path / "l/d") == str(victim)


# --- one entry in place of another

KINDS = {
    "file": file("x", b"content"),
    "empty": file("x"),
    "directory": directory("x"),
    "symlink": symlink("x", "other"),
    "hardlink": hardlink("x", "other"),
    "fifo": fifo("x"),
    "device": device("x", 1, 3),
}


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_the_last_entry_of_a_name_wins(tmp_path: Path, first: str, second: str) -> None:
    other = file("other", b"o")
    inside = [file("x/inside", b"in"), directory("x/deeper/still")] if first == "directory" else []
    unpacked(tmp_path / "l", other, KINDS[first], *inside, KINDS[second])
    expected = [other, KINDS[second]]
    if first == second == "directory":
        expected += inside
    unpacked(tmp_path / "expected", *expected)
    (tmp_path / "l").touch()
    ours, theirs = describe(tmp_path / "l"), describe(tmp_path / "expected")
    if second == "directory" != first:  # what was replaced hid the layers below
        assert ours[b"x"]["xattrs"].pop("trusted.overlay.opaque") == b"y"
    for tree in (ours, theirs):
        for path in (b"", b"x/deeper"):
            if path in tree:
                del tree[path]["mtime"]
    assert differences(ours, theirs) == []


def test_a_directory_again_gets_the_later_metadata(tmp_path: Path) -> None:
    later = MTIME_NS + 10**9
    unpacked(
        tmp_path / "l",
        directory("d", 0o700, uid=1, gid=2, xattrs={"user.a": b"1"}),
        file("d/f", b"x"),
        directory("d", 0o2755, uid=3, gid=4, mtime_ns=later, xattrs={"user.b": b"2"}),
        file("d/g", b"x"),
    )
    found = describe(tmp_path / "l")[b"d"]
    assert found["owner"] == (3, 4) and found["mode"] == oct(0o42755)
    assert found["xattrs"] == {"user.a": b"1", "user.b": b"2"} and found["mtime"] == later
    assert (tmp_path / "l/d/g").stat().st_gid == 0  # not the set-group-ID directory's


def test_directory_times_hold_whatever_comes_in_between(tmp_path: Path) -> None:
    entries = [directory(f"d{n}", mtime_ns=n * 10**9 + n) for n in range(1, 100)]
    entries += [file(f"d{n}/f{m}", b"x") for m in range(3) for n in range(1, 100)]
    entries += [symlink("alias", "d7"), file("alias/g", b"y"), file("d7/h", b"z")]
    unpacked(tmp_path / "l", *entries)
    for n in range(1, 100):
        assert (tmp_path / f"l/d{n}").stat().st_mtime_ns == n * 10**9 + n


def test_what_was_replaced_is_told_before_it_goes(tmp_path: Path) -> None:
    told = []

    def superseded(name: bytes, fd: int) -> None:
        told.append((name, os.read(fd, 100)))

    result = unpacked(
        tmp_path / "l",
        file("a", b"one"),
        hardlink("a2", "a"),
        file("a", b"two!"),
        file("d/e/f", b"deep", mode=0),
        symlink("s", "d"),
        file("d", b"instead"),
        file("empty"),
        directory("empty"),
        on_superseded=superseded,
    )
    assert told == [(b"a", b"one"), (b"d/e/f", b"deep")]
    assert result.superseded == 2
    assert result.size == len(b"one" + b"two!" + b"instead")
    assert sorted(describe(tmp_path / "l")) == [b"", b"a", b"a2", b"d", b"empty", b"s"]


# --- hard links


def test_size_counts_a_hard_linked_file_once(tmp_path: Path) -> None:
    result = unpacked(tmp_path / "l", file("a", bytes(1000)), hardlink("b", "./a"), file("c", b"x"))
    assert (result.size, result.entries) == (1001, 3)
    assert (tmp_path / "l/a").stat().st_nlink == 2


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (hardlink("x", "../../etc/passwd"), "'..'"),
        (hardlink("x", "/etc/passwd"), "not there"),
        (hardlink("x", "missing"), "not there"),
        (hardlink("x", "dir"), "directory"),
        (hardlink("x", "."), "directory"),
        (hardlink("x", "/"), "directory"),
        (hardlink("file", "file"), "itself"),
        (hardlink("file", "link/file"), "itself"),
        (hardlink("dir", "dir/inside"), "replaces"),
        (hardlink("x", "out/passwd"), "not there"),
        (hardlink("x", ".wh.gone"), "no file"),
        (hardlink("x", "gone"), "not there"),
        (hardlink("x", ".wh..wh.plnk/1.2"), "no file"),
        (hardlink("x", "file/below"), "not there"),
    ],
)
def test_hard_links_that_lead_to_no_file_are_refused(tmp_path: Path, link: tuple, why: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidArchive, match=why) as caught:
        unpacked(
            tmp_path / "l",
            file("file", b"x"),
            file("dir/inside", b"y"),
            symlink("link", "."),
            symlink("out", "/etc"),
            file(".wh.gone"),
            link,
        )
    assert caught.value.entry == link[0].name


def test_aufs_link_sources_are_linked_and_leave_nothing(tmp_path: Path) -> None:
    told = []
    result = unpacked(
        tmp_path / "l",
        directory(".wh..wh.plnk", 0o700),
        file(".wh..wh.plnk/15.16273", b"linked", uid=5, mode=0o4711),
        file(".wh..wh.plnk/15.9", b"unused"),
        file(".wh..wh.aufs"),
        directory(".wh..wh.orph"),
        hardlink("a", ".wh..wh.plnk/15.16273"),
        hardlink("b", "/.wh..wh.plnk/15.16273"),
        on_superseded=lambda name, fd: told.append(name),
    )
    tree = describe(tmp_path / "l")
    assert sorted(tree) == [b"", b"a", b"b"]
    assert tree[b"a"]["owner"] == (5, 0) and tree[b"a"]["mode"] == oct(0o104711)
    assert tree[b"b"]["same as"] == b"a"
    assert result.size == 6
    assert sorted(told) == [b".wh..wh.plnk/15.16273", b".wh..wh.plnk/15.9"]


# --- owners


def test_owners_are_mapped(tmp_path: Path) -> None:
    idmap = IdMap((IdRange(0, 100_000, 65536),), (IdRange(0, 200_000, 65536),))
    unpacked(
        tmp_path / "l",
        file("implied/f", b"x", uid=1000, gid=5, mode=0o6755),
        symlink("s", "f", uid=1),
        idmap=idmap,
    )
    owners = {path: about["owner"] for path, about in describe(tmp_path / "l").items()}
    assert owners == {
        b"": (100_000, 200_000),
        b"implied": (100_000, 200_000),
        b"implied/f": (101_000, 200_005),
        b"s": (100_001, 200_000),
    }
    assert stat.S_IMODE((tmp_path / "l/implied/f").stat().st_mode) == 0o6755
    with pytest.raises(UnmappedId):
        unpacked(tmp_path / "m", file("f", uid=65536), idmap=idmap)


@pytest.mark.parametrize("uid", [2**32 - 1, 2**32, 2**55])
def test_owners_that_are_none_are_refused(tmp_path: Path, uid: int) -> None:
    info = tarfile.TarInfo("f")
    info.uid = uid
    with pytest.raises(InvalidArchive):
        unpack(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)), tmp_path, fmt=OVERLAY)


# --- devices


def test_devices_can_be_refused_or_left_out(tmp_path: Path) -> None:
    warnings: list[str] = []
    null = device("null", 1, 3)
    disk = device("disk", 8, 0, Type.BLOCK)
    with pytest.raises(InvalidArchive, match="device"):
        unpacked(tmp_path / "refused", null, devices="refuse")
    unpacked(tmp_path / "skipped", null, disk, file("f"), devices="skip", warn=warnings.append)
    assert os.listdir(tmp_path / "skipped") == ["f"]
    assert len(warnings) == 1 and "null" in warnings[0]


def test_a_device_that_would_be_a_whiteout_is_left_out(tmp_path: Path) -> None:
    warnings: list[str] = []
    unpacked(tmp_path / "overlay", device("x", 0, 0), warn=warnings.append)
    assert os.listdir(tmp_path / "overlay") == [] and "whiteout" in warnings[0]
    unpacked(tmp_path / "aufs", device("x", 0, 0), fmt=AUFS)
    assert os.listdir(tmp_path / "aufs") == ["x"]


@pytest.mark.parametrize(("major", "minor"), [(4096, 0), (0, 1 << 20)])
def test_devices_that_linux_does_not_have_are_refused(
    tmp_path: Path, major: int, minor: int
) -> None:
    with pytest.raises(InvalidArchive, match="no device"):
        unpacked(tmp_path / "l", device("x", major, minor))


# --- odds and ends


def test_zeros_become_holes_unless_told_not_to(ext4: Path) -> None:
    content = b"a" + bytes(300_000) + b"b" * 70_000 + bytes(65536) + bytes(200_000)
    for name, punch in (("plain", False), ("punched", True)):
        unpacked(ext4 / name, file("f", content), file("g", b"x" * 200_000), punch_zeros=punch)
        assert (ext4 / name / "f").read_bytes() == content
        assert (ext4 / name / "g").read_bytes() == b"x" * 200_000
    assert (ext4 / "punched/f").stat().st_blocks < (ext4 / "plain/f").stat().st_blocks / 2


def test_the_umask_does_not_matter_and_stays(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        unpacked(
            tmp_path / "l", file("f", mode=0o666), directory("d", 0o777), fifo("p", mode=0o622)
        )
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    modes = {path: about["mode"] for path, about in describe(tmp_path / "l").items()}
    assert modes == {b"": "0o40755", b"f": "0o100666", b"d": "0o40777", b"p": "0o10622"}


def test_progress_counts_the_bytes_of_the_archive(tmp_path: Path) -> None:
    done: list[int] = []
    entries = [file(f"f{n}", bytes(1 << 19)) for n in range(8)]
    unpacked(tmp_path / "l", *entries, progress=done.append)
    assert done == sorted(done) and len(done) >= 3
    assert done[-1] == len(archive(*entries)) - 1024


def test_truncation_is_invalid_wherever_it_is(tmp_path: Path) -> None:
    whole = archive(directory("d"), file("d/f", b"x" * 3000), symlink("s", "d"))
    for length in range(1, len(whole) - 1024, 256):
        root = tmp_path / str(length)
        root.mkdir()
        with pytest.raises(InvalidArchive):
            unpack(io.BytesIO(whole[:length]), root, fmt=OVERLAY, options=UnpackOptions())


def test_a_full_disk_is_an_oserror_with_the_entry(tmpfs_small: Path) -> None:
    with pytest.raises(OSError, match="'big'") as caught:
        unpacked(tmpfs_small / "l", file("small", b"x"), file("big", b"x" * (8 << 20)))
    assert caught.value.errno == 28 and caught.value.filename == "big"
