"""Both ways against GNU tar, bsdtar and the standard library: they write, we read, and back."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from lamina.archive.tar import Entry, TarReader, TarWriter, Type
from tests import support
from tests.archive.tar import trees
from tests.archive.tar.trees import Look

GNU_TAR = ("tar", "--sort=name", "--no-check-device")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    return root


def pack_with_tarfile(root: Path, target: Path, form: int) -> None:
    with tarfile.open(target, "w", format=form, errors="surrogateescape") as archive:
        archive.add(root, ".")


def check_reading(target: Path, root: Path, tmp_path: Path, look: Look) -> None:
    with target.open("rb") as stream:
        found = trees.of_archive(stream, tmp_path / "scratch", look)
    assert trees.differences(trees.of_tree(root, look), found) == []


# --- they write, we read


@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_gnu_tars_archives_are_read(form: str, tree: Path, tmp_path: Path) -> None:
    support.need("tar")
    plain = form in ("v7", "ustar")
    trees.make(tree, plain=plain, old=-1_500_000_000)
    if form == "v7":
        for special in ("fifo", "null", "loop"):
            (tree / special).unlink(missing_ok=True)
        os.utime(tree, ns=(trees.TIME, trees.TIME))
    target = tmp_path / "gnu.tar"
    support.run(*GNU_TAR, f"--format={form}", "-cf", target, "-C", tree, ".")
    check_reading(target, tree, tmp_path, Look(fractions=form == "posix"))


@pytest.mark.parametrize("form", ["ustar", "gnutar", "pax"])
def test_bsdtars_archives_are_read(form: str, tree: Path, tmp_path: Path) -> None:
    support.need("bsdtar")
    # Its gnutar format has no times before 1970, and its pax format no fractions there.
    old = -2 * trees.SECOND if form == "pax" else 0
    trees.make(tree, plain=form == "ustar", old=old)
    target = tmp_path / "bsd.tar"
    support.run("bsdtar", f"--format={form}", "-cf", target, "-C", tree, ".")
    check_reading(target, tree, tmp_path, Look(fractions=form == "pax"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tarfiles_archives_are_read(form: int, tree: Path, tmp_path: Path) -> None:
    trees.make(tree, plain=form == tarfile.USTAR_FORMAT, old=-2 * trees.SECOND)
    target = tmp_path / "std.tar"
    pack_with_tarfile(tree, target, form)
    # tarfile's times are floats.
    check_reading(target, tree, tmp_path, Look(fractions=False))


@pytest.mark.parametrize("how", ["0.0", "0.1", "1.0", "gnu", "oldgnu"])
@pytest.mark.parametrize("pieces", [0, 1, 3, 60])
def test_gnu_tars_sparse_files_are_read(how: str, pieces: int, tree: Path, tmp_path: Path) -> None:
    support.need("tar")
    with (tree / ("s" * 120)).open("wb") as stream:
        stream.truncate(pieces * 65536 + 100_000)
        for number in range(pieces):
            stream.seek(65536 * number + 4096)
            stream.write(b"%d" % number * 3000)
    (tree / "after").write_bytes(b"after")
    target = tmp_path / "sparse.tar"
    form = ("--format=posix", f"--sparse-version={how}") if how[0] in "01" else (f"--format={how}",)
    support.run(*GNU_TAR, "--sparse", *form, "-cf", target, "-C", tree, ".")
    look = Look(fractions=how[0] in "01")
    check_reading(target, tree, tmp_path, look)
    with target.open("rb") as archive:
        (entry,) = [e for e in TarReader(archive) if e.name.endswith(b"s")]
    assert entry.sparse is not None
    assert entry.stored_size <= pieces * 20_480


def test_gnu_tar_gives_sizes_and_ids_beyond_octal(tree: Path, tmp_path: Path) -> None:
    support.need("tar")
    with (tree / "huge").open("wb") as stream:
        stream.truncate(9 << 30)
    for form in ("gnu", "posix"):
        target = tmp_path / f"{form}.tar"
        support.run(
            *GNU_TAR, "-S", f"--format={form}", "--owner=x:3000000", "--group=y:4000000000",
            "-cf", target, "-C", tree, "huge",
        )  # fmt: skip
        with target.open("rb") as archive:
            (entry,) = TarReader(archive)
        assert (entry.size, entry.stored_size, entry.sparse) == (9 << 30, 0, ())
        assert (entry.uid, entry.gid) == (3_000_000, 4_000_000_000)
        assert (entry.uname, entry.gname) == (b"x", b"y")


@pytest.mark.root
def test_xattrs_by_gnu_tar_and_bsdtar_are_read(tree: Path, tmp_path: Path) -> None:
    support.need("tar", "bsdtar")
    make_xattrs(tree)
    target = tmp_path / "x.tar"
    support.run(*GNU_TAR, "--xattrs", "--xattrs-include=*", "-cf", target, "-C", tree, ".")
    check_reading(target, tree, tmp_path, Look())
    support.run("bsdtar", "--xattrs", "--no-acls", "--format=pax", "-cf", target, "-C", tree, ".")
    with target.open("rb") as stream:
        entries = {entry.name: entry for entry in TarReader(stream)}
    assert entries[b"./file"].xattrs["user.binary"] == b"\0\xff\n="


def make_xattrs(root: Path) -> None:
    path = root / "file"
    path.write_bytes(b"#!")
    os.setxattr(path, "user.binary", b"\0\xff\n=")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.odd=na%me", b"1")
    os.setxattr(path, "user.large", b"v" * 3000)
    os.setxattr(
        path, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    )
    os.setxattr(path, "trusted.overlay.opaque", b"y")
    access = (
        "0200000001000600ffffffff0200040001000000040004 00ffffffff10000600ffffffff20000400ffffffff"
    )
    os.setxattr(path, "system.posix_acl_access", bytes.fromhex(access.replace(" ", "")))


def test_multi_volume_archives_are_refused(tree: Path, tmp_path: Path) -> None:
    support.need("tar")
    (tree / "big").write_bytes(os.urandom(300_000))
    volumes = [tmp_path / f"{n}.tar" for n in range(3)]
    files = [f"--file={volume}" for volume in volumes]
    support.run("tar", "-c", "-M", "--tape-length=150", *files, "-C", tree, "big")
    with volumes[1].open("rb") as stream, pytest.raises(Exception, match="multi-volume"):
        list(TarReader(stream))


def test_labels_and_incremental_archives_are_read(tree: Path, tmp_path: Path) -> None:
    support.need("tar")
    (tree / "file").write_bytes(b"data")
    target = tmp_path / "dump.tar"
    for form in ("gnu", "posix"):
        support.run(
            *GNU_TAR, f"--format={form}", "--label=Label",
            f"--listed-incremental={tmp_path}/{form}", "-cf", target, "-C", tree, ".",
        )  # fmt: skip
        with target.open("rb") as stream:
            found = [(entry.name, entry.type) for entry in TarReader(stream)]
        assert found == [(b".", Type.DIRECTORY), (b"./file", Type.FILE)]


# --- we write, they read


@pytest.mark.root
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("peer", ["tar", "bsdtar"])
@pytest.mark.parametrize("sparse", [False, True])
def test_what_we_write_they_extract(
    peer: str, locale: str, sparse: bool, tree: Path, tmp_path: Path
) -> None:
    support.need(peer)
    trees.make(tree, old=-1_500_000_000 if peer == "tar" else -2 * trees.SECOND)
    make_xattrs(tree)
    with (tree / "sparse").open("wb") as stream:
        for offset in (65536, 262144):
            stream.seek(offset)
            stream.write(b"data" * 1024)
        stream.truncate(500_000)
    target, out = tmp_path / "ours.tar", tmp_path / "out"
    trees.write(tree, target, sparse=sparse)
    out.mkdir()
    more = (
        ("--xattrs", "--xattrs-include=*", "--warning=no-timestamp", "--warning=no-unknown-keyword")
        if peer == "tar"
        else ("--xattrs",)
    )
    done = support.run(
        peer, *more, "--same-owner", "--numeric-owner", "-xpf", target, "-C", out,
        env={**os.environ, "LC_ALL": locale},
    )  # fmt: skip
    assert done.stderr == b""
    expected, found = trees.of_tree(tree, Look()), trees.of_tree(out, Look())
    if peer == "bsdtar":
        del expected[b"."], found[b"."]  # its time is not set
        # libarchive does not undo GNU tar's escapes in names of extended attributes, and
        # leaves ACLs in their binary form alone.
        for fact in (expected[b"file"], found[b"file"]):
            for name in ("user.odd=na%me", "user.odd%3Dna%25me", "system.posix_acl_access"):
                fact.xattrs.pop(name, None)
    assert trees.differences(expected, found) == []


def test_what_we_write_tarfile_extracts(tree: Path, tmp_path: Path) -> None:
    trees.make(tree)
    target, out = tmp_path / "ours.tar", tmp_path / "out"
    trees.write(tree, target, sparse=True)
    with tarfile.open(target, errors="surrogateescape") as archive:
        # Python 3.11 has filters from 3.11.4 on; later ones warn without one.
        archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
        archive.extractall(out)
    look = Look(fractions=False, xattrs=False)
    expected, found = trees.of_tree(tree, look), trees.of_tree(out, look)
    for facts in (expected, found):  # it leaves symbolic links' own times alone
        for name, fact in facts.items():
            if fact.type is Type.SYMLINK:
                facts[name] = fact._replace(mtime_ns=0)
    assert trees.differences(expected, found) == []


def test_huge_sizes_are_listed_by_them(tmp_path: Path) -> None:
    support.need("tar", "bsdtar")
    target = tmp_path / "huge.tar"
    with target.open("wb") as sink:
        writer = TarWriter(sink)
        writer.add(
            Entry(b"huge", size=9 << 30, uid=3_000_000, sparse=((1 << 30, 512),)), [b"x" * 512]
        )
        writer.add(Entry(b"huge" * 40, size=2**62, sparse=()))
        writer.close()
    for listed in (support.run("tar", "-tvf", target), support.run("bsdtar", "-tvf", target)):
        assert b"9663676416" in listed.stdout
        assert b"4611686018427387904" in listed.stdout
        assert b"huge" * 40 in listed.stdout


# --- an archive of the real world


def test_a_debian_root_is_read_as_tarfile_reads_it() -> None:
    from tests import debian

    path = debian.root_tar()
    with path.open("rb") as stream, tarfile.open(path, errors="surrogateescape") as archive:
        for ours, theirs in zip(TarReader(stream), archive, strict=True):
            assert os.fsdecode(ours.name) == theirs.name.rstrip("/")
            assert (ours.mode, ours.uid, ours.gid) == (theirs.mode, theirs.uid, theirs.gid)
            assert (ours.size, ours.mtime_ns) == (theirs.size, theirs.mtime * trees.SECOND)
            assert os.fsdecode(ours.linkname) == theirs.linkname
            assert ours.offset == theirs.offset_data
