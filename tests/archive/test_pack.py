"""Trees and layers into tars: what other readers make of them, and what is said on the way."""

from __future__ import annotations

import hashlib
import io
import os
import random
import socket
import struct
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from lamina.archive.changes import changes_between
from lamina.archive.pack import PackOptions, pack, pack_tree
from lamina.archive.pieces import PIECE
from lamina.archive.unpack import unpack
from lamina.archive.whiteout import AUFS, OVERLAY, OVERLAY_USER, Format
from lamina.archive.xattrs import ALL as ALL_XATTRS
from lamina.archive.xattrs import DEFAULT_POLICY, XattrPolicy
from lamina.errors import LayerBroken, UnmappedId
from lamina.kernel import xattr
from lamina.kernel.idmap import IdMap, IdRange
from lamina.kernel.remove import remove_tree
from tests.archive.layers import chain, difference, disturb, in_memory, make, overlay
from tests.support import need, run
from tests.users import User

pytestmark = pytest.mark.root
ALL = pytest.mark.parametrize("fmt", [AUFS, OVERLAY, OVERLAY_USER], ids=lambda f: f.name)
NOW = 1_700_000_000 * 10**9


def join(pieces: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(bytes(piece) for piece in pieces)


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [member.name + "/" * member.isdir() for member in tar]


def member(archive: bytes, name: str) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getmember(name)


def layer_names(uppers: Sequence[Path], fmt: Format, lowers: Sequence[Path] | None) -> list[str]:
    return names(join(pack(uppers, fmt=fmt, lowers=lowers)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One of everything."""
    top = tmp_path / "tree"
    top.mkdir()
    (top / "empty").touch()
    (top / "file").write_bytes(b"content")
    (top / "large").write_bytes(random.Random(0).randbytes(3 * PIECE + 1234))
    os.link(top / "file", top / "hard")
    (top / "symlink").symlink_to("/somewhere/" + "x" * 200)
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "block", 0o60600, os.makedev(7, 300))
    os.mknod(top / "character", 0o20666, os.makedev(1, 3))
    (top / ("long" * 30)).mkdir()
    (top / ("long" * 30) / ("name" * 50)).write_bytes(b"x" * 512)
    (top / os.fsdecode(b"not utf-8 \xff")).touch()
    (top / "ä").mkdir(mode=0o700)
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    (top / "setuid").write_text("#!")
    os.chown(top / "setuid", 1000, 3_000_000)
    (top / "setuid").chmod(0o4755)
    os.setxattr(top / "file", "user.note", b"binary \0\n=\xff")
    os.setxattr(top / "sticky", "trusted.note", b"")
    os.setxattr(top / "empty", "security.capability", CAPABILITY_V2)
    os.utime(top / "file", ns=(0, NOW + 123_456_789))
    os.utime(top / "symlink", ns=(0, NOW), follow_symlinks=False)
    os.utime(top / "empty", ns=(0, -2_000_000_000))
    return top


CAPABILITY_V2 = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.mark.parametrize("reader", ["tar", "bsdtar", "lamina"])
def test_other_readers_make_the_same_tree(tree: Path, tmp_path: Path, reader: str) -> None:
    archive = tmp_path / "tree.tar"
    archive.write_bytes(join(pack_tree(tree)))
    out = tmp_path / "out"
    out.mkdir()
    if reader == "lamina":
        with archive.open("rb") as stream:
            unpack(stream, out, fmt=OVERLAY)
    else:
        need(reader)
        flags = ["--xattrs", "--xattrs-include=*"] if reader == "tar" else []
        run(reader, "-xpf", archive, "-C", out, "--numeric-owner", *flags)
    assert changes_between(out, tree) == []
    assert difference(out, tree) == []
    assert (out / "large").read_bytes() == (tree / "large").read_bytes()


def test_umoci_makes_the_same_tree_of_layers(tmp_path: Path) -> None:
    need("umoci")
    base = make(tmp_path / "0", OVERLAY, "etc/passwd", "etc/shadow", "var/lib/x", "usr/bin/sh")
    upper = make(tmp_path / "1", OVERLAY, "-etc/shadow", "var/!", "var/new", "usr/bin/bash")
    os.link(upper / "usr/bin/bash", upper / "usr/bin/rbash")
    os.setxattr(upper / "var/new", "user.note", b"1")
    image = tmp_path / "image"
    run("umoci", "init", "--layout", image)
    run("umoci", "new", "--image", f"{image}:x")
    for number, layer in enumerate((base, upper)):
        archive = tmp_path / f"{number}.tar"
        archive.write_bytes(join(pack([layer], fmt=OVERLAY)))
        run("umoci", "raw", "add-layer", "--image", f"{image}:x", archive)
    run("umoci", "raw", "unpack", "--image", f"{image}:x", tmp_path / "out")
    with overlay(tmp_path / "merged", [upper, base]) as merged:
        assert difference(tmp_path / "out", merged) == []
        assert (tmp_path / "out/usr/bin/rbash").stat().st_nlink == 2


@pytest.mark.parametrize("seed", range(8))
def test_layers_packed_and_unpacked_show_the_same(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    layers = [tmp_path / "0"]
    layers[0].mkdir()
    disturb(layers[0], rng, 40)
    for number in range(1, 4):
        upper = tmp_path / str(number)
        with overlay(tmp_path / "merged", layers, upper) as merged:
            disturb(merged, rng, 15)
        layers.insert(0, upper)

    def repack(uppers: Sequence[Path], lowers: Sequence[Path], fmt: Format, name: str) -> Path:
        archive = join(pack(uppers, fmt=OVERLAY, lowers=lowers))
        (tmp_path / name).mkdir()
        unpack(io.BytesIO(archive), tmp_path / name, fmt=fmt)
        again = join(pack([tmp_path / name], fmt=fmt, lowers=lowers if fmt is OVERLAY else None))
        if fmt is OVERLAY:
            assert again == archive, "what comes out goes in"
        return tmp_path / name

    with overlay(tmp_path / "old", layers) as old:
        for fmt in (OVERLAY, OVERLAY_USER):
            copies = [
                repack([layer], layers[number + 1 :], fmt, f"{fmt.name}-{layer.name}")
                for number, layer in enumerate(layers)
            ]
            squashed = [repack(layers[:3], layers[3:], fmt, f"{fmt.name}-squashed"), copies[3]]
            for stack in (copies, squashed):
                user = fmt is OVERLAY_USER
                with overlay(tmp_path / "new", stack, user=user) as new:
                    assert difference(new, old) == []


@ALL
def test_markers_come_first_in_a_directory(fmt: Format, tmp_path: Path) -> None:
    top = make(tmp_path / "1", fmt, "a", "-z", "d/!", "d/b", "e/a", "-e/c", "-e/b", "e/z/y")
    assert layer_names([top], fmt, None) == [
        "./", ".wh.z", "a", "d/", "d/.wh..wh..opq", "d/b", "e/", "e/.wh.b", "e/.wh.c", "e/a",
        "e/z/", "e/z/y",
    ]  # fmt: skip
    marker = member(join(pack([top], fmt=fmt)), ".wh.z")
    assert (marker.size, marker.mtime, marker.isreg()) == (0, 0, True)


@ALL
def test_markers_that_hide_nothing_are_left_out(fmt: Format, tmp_path: Path) -> None:
    lower = make(tmp_path / "1", fmt, "d/x", "f", "e/g")
    upper = make(tmp_path / "2", fmt, "-f", "-nothing", "d/!", "new/!", "new/y", "-e/h")
    (upper / "e").chmod(0o700)
    assert layer_names([upper], fmt, [lower]) == [
        ".wh.f", "d/", "d/.wh..wh..opq", "e/", "new/", "new/y",
    ]  # fmt: skip


def test_the_top_directory_is_there_when_it_changed(tmp_path: Path) -> None:
    lower = make(tmp_path / "1", OVERLAY, "d/x")
    upper = make(tmp_path / "2", OVERLAY)
    assert layer_names([upper], OVERLAY, [lower]) == []
    upper.chmod(0o700)
    assert layer_names([upper], OVERLAY, [lower]) == ["./"]
    assert layer_names([upper], OVERLAY, []) == ["./"]


def test_the_same_tree_gives_the_same_bytes_elsewhere(tree: Path, tmp_path: Path) -> None:
    """Another file system, made in another order, with other access times and inodes."""
    with in_memory(tmp_path / "memory") as memory:
        other = memory / "tree"
        run("cp", "-a", tree, other)
        files = [path for path in other.iterdir() if path.is_file() and not path.is_symlink()]
        for path in files:
            path.read_bytes()
        other_archive = join(pack_tree(other))
    assert join(pack_tree(tree)) == other_archive


def test_pieces_are_large_and_reused(tree: Path) -> None:
    for number in range(3000):
        (tree / "sticky" / f"{number:05}").write_bytes(b"x" * number)
    (tree / "big").write_bytes(bytes(5 * PIECE))
    sizes = [len(piece) for piece in pack_tree(tree)]
    assert max(sizes) <= PIECE
    assert len(sizes) < 1.2 * sum(sizes) / PIECE + 2
    digest = hashlib.sha256()
    for piece in pack_tree(tree):
        digest.update(piece)
    assert digest.digest() == hashlib.sha256(join(pack_tree(tree))).digest()


def test_an_archive_closed_half_way_leaves_no_file_open(tree: Path) -> None:
    for taken in range(1, 4):
        pieces = pack_tree(tree)
        for _ in range(taken):
            next(pieces)
        del pieces


def test_hard_links_follow_the_first_name(tree: Path) -> None:
    archive = join(pack_tree(tree))
    first, second = member(archive, "file"), member(archive, "hard")
    assert (first.size, second.linkname, second.islnk()) == (7, "file", True)


def test_pax_only_where_needed(tmp_path: Path) -> None:
    top = make(tmp_path / "1", OVERLAY, "plain")
    os.utime(top / "plain", ns=(0, NOW))
    os.utime(top, ns=(0, NOW))
    assert len(join(pack_tree(top))) == 512 * (1 + 2 + 2)
    os.utime(top / "plain", ns=(0, NOW + 1))
    assert member(join(pack_tree(top)), "plain").pax_headers == {"mtime": "1700000000.000000001"}


def test_times_are_clamped(tree: Path) -> None:
    clamp = NOW - 10**9
    archive = join(pack_tree(tree, options=PackOptions(clamp_mtime_ns=clamp)))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        times = {entry.name: entry.mtime for entry in tar}
    assert max(times.values()) == clamp // 10**9
    assert times["empty"] == -2


def test_sparse_files_on_request(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    for name, size, writes in (
        ("holes", 50 << 20, [(0, b"a" * 4096), (20 << 20, b"b" * 70_000), (30 << 20, b"c")]),
        ("hole", 10 << 20, []),
        ("tail", (10 << 20) + 3, [(10 << 20, b"xyz")]),
        ("dense", 5000, [(0, b"d" * 5000)]),
    ):
        with (top / name).open("wb") as file:
            file.truncate(size)
            for offset, data in writes:
                file.seek(offset)
                file.write(data)
    archive = tmp_path / "a.tar"
    archive.write_bytes(join(pack_tree(top, options=PackOptions(sparse=True))))
    assert archive.stat().st_size < 400_000
    assert len(join(pack_tree(top))) > 70 << 20
    for reader in ("tar", "bsdtar"):
        need(reader)
        (tmp_path / reader).mkdir()
        run(reader, "-xpf", archive, "-C", tmp_path / reader)
        for path in top.iterdir():
            assert (tmp_path / reader / path.name).read_bytes() == path.read_bytes(), path.name
        assert (tmp_path / reader / "holes").stat().st_blocks < 1000


def test_owners_are_those_inside(tmp_path: Path) -> None:
    idmap = IdMap((IdRange(0, 100_000, 65_536),), (IdRange(0, 200_000, 65_536),))
    top = make(tmp_path / "1", OVERLAY, "f")
    os.chown(top, 100_000, 200_000)
    os.chown(top / "f", 100_033, 200_044)
    found = member(join(pack_tree(top, idmap=idmap)), "f")
    assert (found.uid, found.gid) == (33, 44)
    os.chown(top / "f", 5, 200_000)
    with pytest.raises(UnmappedId, match=r"^f: user id 5 "):
        join(pack_tree(top, idmap=idmap))


def test_ids_in_attributes_are_those_inside(tmp_path: Path) -> None:
    idmap = IdMap((IdRange(0, 100_000, 65_536),), (IdRange(0, 200_000, 65_536),))
    top = make(tmp_path / "1", OVERLAY, "root", "nested")
    for path in (top, top / "root", top / "nested"):
        os.chown(path, 100_000, 200_000)

    def capability(root: int) -> bytes:
        return struct.pack("<IIIIII", 0x0300_0001, 1 << 10, 0, 0, 0, root)

    os.setxattr(top / "root", "security.capability", capability(100_000))
    os.setxattr(top / "nested", "security.capability", capability(101_000))
    need("setfacl")
    run("setfacl", "-m", "u:100033:r,g:200044:rw", top / "nested")
    out = tmp_path / "out"
    out.mkdir()
    unpack(io.BytesIO(join(pack_tree(top, idmap=idmap))), out, fmt=OVERLAY)
    inside = xattr.list_all(str(out / "root"))["security.capability"]
    assert inside == struct.pack("<IIIII", 0x0200_0001, 1 << 10, 0, 0, 0)
    assert xattr.list_all(str(out / "nested"))["security.capability"] == capability(1000)
    listed = run("getfacl", "-n", out / "nested").stdout
    assert b"user:33:r--" in listed
    assert b"group:44:rw-" in listed


def test_which_attributes_belong_to_a_layer(tmp_path: Path) -> None:
    top = make(tmp_path / "1", OVERLAY, "f")
    for name in ("user.a", "trusted.a", "trusted.overlay.origin", "user.overlay.origin"):
        os.setxattr(top / "f", name, b"1")

    def kept(policy: XattrPolicy = DEFAULT_POLICY) -> set[str]:
        archive = join(pack_tree(top, options=PackOptions(xattrs=policy)))
        headers = member(archive, "f").pax_headers
        return {key.removeprefix("SCHILY.xattr.") for key in headers if "xattr" in key}

    assert kept() == {"user.a", "trusted.a"}
    assert kept(ALL_XATTRS) == {
        "user.a",
        "trusted.a",
        "trusted.overlay.origin",
        "user.overlay.origin",
    }


def test_what_tar_can_not_say_is_left_out_with_a_warning(tmp_path: Path) -> None:
    top = make(tmp_path / "1", OVERLAY, "f", ".wh.f", "d/.wh.sub/inner/x", "d/g", "-.wh.z")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "socket"))
        said: list[str] = []
        archive = join(pack([top], fmt=OVERLAY, options=PackOptions(warn=said.append)))
    assert names(archive) == ["./", "d/", "d/g", "f"]
    assert [line.split(":")[0] for line in said] == [".wh.z", ".wh.f", "d/.wh.sub", "socket"]
    assert "socket" in said[3]


def test_a_file_that_became_shorter_is_filled_with_zeros(tmp_path: Path) -> None:
    top = make(tmp_path / "1", OVERLAY)
    (top / "a").write_bytes(b"a" * (5 * PIECE))
    (top / "b").write_bytes(b"b" * 100)
    said: list[str] = []
    pieces = pack_tree(top, options=PackOptions(warn=said.append))
    start = bytes(next(pieces))
    os.truncate(top / "a", 2 * PIECE)
    archive = start + join(pieces)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = tar.extractfile("a")
        assert found is not None
        content = found.read()
        assert tar.getmember("b").size == 100
    assert content == b"a" * (2 * PIECE) + bytes(3 * PIECE)
    assert said == [f"a: became shorter while it was packed: {3 * PIECE} zeros instead"]


def test_a_file_that_grows_keeps_the_size_it_had(tmp_path: Path) -> None:
    top = make(tmp_path / "1", OVERLAY)
    (top / "a").write_bytes(b"a" * (3 * PIECE + 1))
    pieces = pack_tree(top)
    start = bytes(next(pieces))
    with (top / "a").open("ab") as file:
        file.write(b"more" * 1000)
    assert member(start + join(pieces), "a").size == 3 * PIECE + 1


def test_what_vanishes_or_turns_into_something_else_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = make(tmp_path / "1", OVERLAY, "a", "b", "c", "d")
    os.link(top / "b", top / "e")
    opened = os.open

    def race(path: object, flags: int, *args: int, **kwargs: int) -> int:
        if path == b"b":
            (top / "b").unlink()
        elif path in (b"c", b"d"):
            victim = top / os.fsdecode(path)
            victim.unlink()
            victim.symlink_to("/etc/shadow") if path == b"c" else os.mkfifo(victim)
        return opened(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", race)
    said: list[str] = []
    archive = join(pack_tree(top, options=PackOptions(warn=said.append)))
    monkeypatch.undo()
    assert names(archive) == ["./", "a", "e"]
    assert member(archive, "e").isreg()
    assert [line.split(":")[0] for line in said] == ["b", "c", "d"]


def test_a_layer_that_leans_on_another_is_refused(tmp_path: Path) -> None:
    top = make(tmp_path / "1", OVERLAY, "d/f")
    os.setxattr(top / "d/f", "trusted.overlay.metacopy", b"")
    with pytest.raises(LayerBroken, match="'d/f'"):
        join(pack([top], fmt=OVERLAY))


def test_ten_thousand_levels(tmp_path: Path) -> None:
    with in_memory(tmp_path / "memory") as memory:
        (memory / "top").mkdir()
        chain(memory / "top", 10_000)
        length = sum(len(piece) for piece in pack_tree(memory / "top"))
        remove_tree(memory / "top")
    assert length > 10_000 * 1024


def test_reading_leaves_access_times_alone(tree: Path) -> None:
    os.utime(tree / "large", ns=(5, NOW))
    join(pack_tree(tree))
    assert (tree / "large").stat().st_atime_ns == 5


def _pack_as_a_user(home: Path) -> tuple[list[str], str]:
    top = make(home / "layer", OVERLAY_USER, "mine", "-gone", "d/!", "d/x")
    shared = layer_names([top], OVERLAY_USER, None)
    (top / "mine").chmod(0)
    try:
        join(pack([top], fmt=OVERLAY_USER))
    except PermissionError as error:
        return shared, os.fsdecode(error.filename)
    return shared, ""


def test_an_ordinary_user_writes_and_packs_layers(ordinary_user: User) -> None:
    found, refused = ordinary_user.call(_pack_as_a_user, ordinary_user.home)
    assert found == ["./", ".wh.gone", "d/", "d/.wh..wh..opq", "d/x", "mine"]
    assert refused == "mine"


def _pack_by_name(tree: Path) -> list[str]:
    return names(join(pack_tree(tree)))


def test_files_of_others_can_be_packed(tmp_path: Path, ordinary_user: User) -> None:
    """Where O_NOATIME is refused."""
    tree = ordinary_user.home / "tree"
    make(tree, OVERLAY, "f")
    assert ordinary_user.call(_pack_by_name, tree) == ["./", "f"]
