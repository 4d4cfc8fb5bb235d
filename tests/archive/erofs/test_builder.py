"""Indexes of layers' tars: mounted, they are what unpacking makes; our reader says the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lamina.archive.tar import Entry, Type
from lamina.errors import InvalidArchive, LayerUnsupported
from tests.archive import tars
from tests.archive.erofs import indexes
from tests.archive.tars import archive, device, directory, fifo, file, hardlink, symlink
from tests.archive.trees import differences
from tests.support import need_filesystem

pytestmark = pytest.mark.root

Made = tuple[Entry, bytes]


def same(memory: Path, tar: bytes | Path) -> indexes.Index:
    """Assert that the index mounted, our reader and the unpacked tree agree."""
    index = indexes.build(memory / "index", tar)
    expected = indexes.facts(indexes.unpacked(memory / "tree", tar))
    with index.mounted() as root:
        assert differences(indexes.facts(root), expected) == []
    with index.open() as image:
        assert differences(indexes.of_image(image), expected) == []
    return index


def test_the_debian_root_is_what_unpacking_makes(memory: Path, debian_root: Path) -> None:
    same(memory, debian_root)


def test_plain_files_and_loop_devices_show_the_same(ext4: Path) -> None:
    from tests.archive.erofs.test_image import ARCHIVE

    need_filesystem("erofs")
    index = indexes.build(ext4 / "index", ARCHIVE)
    with index.open() as image:
        expected = indexes.of_image(image)
    for use_loop in (None, True):
        with index.mounted(use_loop=use_loop) as root:
            assert differences(indexes.facts(root), expected) == []


def test_every_kind_of_entry(memory: Path) -> None:
    same(
        memory,
        archive(
            directory(".", 0o751, uid=7, gid=8),
            directory("d", 0o1777),
            file("d/f", b"content", mode=0o4755, uid=4_000_000_000, gid=5),
            hardlink("d/g", "d/f"),
            hardlink("h", "/d/f"),
            symlink("s", "d/f"),
            symlink("long", b"x" * 4095),
            hardlink("other name", "s"),
            fifo("p", mode=0o620),
            device("null", 1, 3, mode=0o666),
            device("big", 4095, (1 << 20) - 1),
            device("sda", 8, 1, Type.BLOCK),
            directory("empty"),
        ),
    )


@pytest.mark.parametrize("mtime_ns", [0, 1, -1, -(10**18), 10**18 + 999_999_999, 2**62])
def test_times_before_1970_and_fractions(memory: Path, mtime_ns: int) -> None:
    same(memory, archive(directory(".", mtime_ns=mtime_ns), file("f", b"x", mtime_ns=mtime_ns)))


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 4096, 5000, 1 << 20])
def test_sizes(memory: Path, size: int) -> None:
    data = os.urandom(size)
    same(memory, archive(directory("."), file("a", b"1"), file("f", data), file("z", b"2")))


def test_names_of_any_length_and_byte(memory: Path) -> None:
    made: list[Made] = [directory(".")]
    made += [file(bytes([65 + length % 26]) * length, b"x") for length in range(1, 256)]
    every = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    made += [file(b"byte " + byte, byte) for byte in every]
    made += [file(byte + b"\xff\x01", byte) for byte in every]
    same(memory, archive(*made))


@pytest.mark.parametrize("count", [0, 1, 20, 30, 40, 1000])
@pytest.mark.parametrize("length", [1, 20, 240, 255])
def test_directories_of_any_size(memory: Path, count: int, length: int) -> None:
    if length == 1:
        count = min(count, 200)
        names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."][:count]
    else:
        names = [b"%0*d" % (length, number) for number in range(count)]
    made = [directory("."), directory("d"), *(file(b"d/" + name) for name in names)]
    index = same(memory, archive(*made))
    with index.open() as image:
        top = image.find(b"d")
        assert [entry.name for entry in image.entries(top)] == sorted(names)
        for name in names:
            assert image.lookup(top, name) is not None
        for name in (b"\x01\x01", b"nothing", b"\xff\xff", b"d"):
            assert (image.lookup(top, name) is None) == (name not in names)


@pytest.mark.parametrize("length", [1, 300, 447, 448, 449, 500, 511, 512, 513, 1024, 4095])
@pytest.mark.parametrize("xattr", [0, 1, 100, 400])
def test_symbolic_links_of_any_length(memory: Path, length: int, xattr: int) -> None:
    xattrs = {"trusted.note": b"n" * xattr} if xattr else {}
    same(memory, archive(directory("."), symlink("s", b"t" * length, xattrs=xattrs)))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 511, 512, 4096, 5000, 65535])
@pytest.mark.parametrize("count", [1, 3])
def test_attributes_of_any_size(memory: Path, size: int, count: int) -> None:
    xattrs = {f"user.a{number}": bytes([97 + number]) * size for number in range(count)}
    same(
        memory,
        archive(
            directory(".", xattrs={"user.top": b"1"}),
            file("f", b"content", xattrs=xattrs),
            directory("d", xattrs=xattrs),
            file("d/g", xattrs={"security.x": b"y" * size, "trusted.t": b""}),
        ),
    )


def test_many_attributes_and_the_longest_name(memory: Path) -> None:
    xattrs = {f"user.{number}": b"v" * (number % 700) for number in range(100)}
    xattrs["user." + "n" * 250] = b"long"
    same(memory, archive(directory("."), file("f", b"x", xattrs=xattrs)))


def test_an_attribute_of_64_kib_has_no_place(memory: Path) -> None:
    tar = archive(directory("."), file("f", xattrs={"user.a": b"x" * 65536}))
    with pytest.raises(LayerUnsupported, match="65536 bytes"):
        indexes.build(memory / "index", tar)


def _acl(*entries: tuple[int, int, int]) -> bytes:
    import struct

    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 0xFFFFFFFF
NAMED = _acl((1, 6, NONE), (2, 4, 1000), (4, 5, NONE), (16, 7, NONE), (32, 0, NONE))
MINIMAL = _acl((1, 6, NONE), (4, 4, NONE), (32, 1, 5))
CAPABILITY = b"\1\0\0\2" + b"\0" * 16


@pytest.mark.allow_log("posix_acl_access is left out")
def test_acls_and_capabilities_act_on_files_as_when_they_are_set(memory: Path) -> None:
    access, default = "system.posix_acl_access", "system.posix_acl_default"
    same(
        memory,
        archive(
            directory(".", 0o700, xattrs={default: NAMED}),
            file("named", b"x", mode=0o2777, xattrs={access: NAMED}),
            file("minimal", b"x", mode=0o777, xattrs={access: MINIMAL}),
            file("empty", b"x", xattrs={access: b""}),
            file("nobody", b"x", xattrs={access: _acl()}),
            file("version", b"x", xattrs={access: b"nonsense"}),
            file(
                "text",
                b"x",
                pax={
                    "SCHILY.acl.access": b"user::rw-,user:x:r--:7,group::r--,mask::r--,other::---"
                },
            ),
            directory("d", xattrs={access: NAMED, default: MINIMAL}),
            file("capable", b"x", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        ),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("system.posix_acl_access", b"\2\0\0\0nonsense!"),
        ("system.posix_acl_access", _acl((1, 6, NONE), (32, 0, NONE))),
        ("system.posix_acl_access", _acl((1, 6, NONE), (2, 4, 7), (4, 5, NONE), (32, 0, NONE))),
        ("system.posix_acl_access", _acl((1, 9, NONE), (4, 4, NONE), (32, 1, NONE))),
        ("system.posix_acl_default", MINIMAL),
        ("security.capability", b"short"),
        ("user.", b"x"),
        ("user." + "n" * 251, b"x"),
        ("user.a", b"x" * 65537),
    ],
)
def test_attributes_that_no_file_takes(memory: Path, name: str, value: bytes) -> None:
    tar = archive(directory("."), file("f", xattrs={name: value}))
    with pytest.raises(InvalidArchive):
        indexes.unpacked(memory / "tree", tar)
    with pytest.raises(InvalidArchive):
        indexes.build(memory / "index", tar)


@pytest.mark.parametrize(
    "name", ["user.a", "security.selinux", "system.nfs4_acl", "nonsense", "trusted.overlay.opaque",
             "user.overlay.whiteout", "trusted.overlay.overlay.x", "system.posix_acl_access"]
)  # fmt: skip
@pytest.mark.allow_log("attribute .* is left out")
def test_attributes_of_every_name_space(memory: Path, name: str) -> None:
    xattrs = {name: NAMED if "acl" in name else b"v"}
    made = [directory("d", xattrs=xattrs), file("f", b"x", xattrs=xattrs)]
    if "acl" not in name:
        made += [symlink("s", "f", xattrs=xattrs), fifo("p", xattrs=xattrs)]
    same(memory, archive(directory("."), *made))


def test_what_entries_of_one_name_come_to(memory: Path) -> None:
    kinds: list[Any] = [
        lambda name: file(name, b"file"),
        lambda name: directory(name, 0o700),
        lambda name: symlink(name, "target"),
        lambda name: hardlink(name, "other"),
        lambda name: fifo(name),
        lambda name: device(name, 1, 3),
    ]
    made: list[Made] = [directory("."), file("other", b"other"), directory("target")]
    for one, first in enumerate(kinds):
        for two, second in enumerate(kinds):
            made += [first(f"{one}{two}"), second(f"{one}{two}")]
    same(memory, archive(*made))


def test_directories_merge_and_the_last_metadata_win(memory: Path) -> None:
    same(
        memory,
        archive(
            directory("."),
            directory("d", 0o700, uid=1, xattrs={"user.a": b"1", "user.b": b"1"}),
            file("d/f", b"x"),
            directory("d", 0o755, uid=2, xattrs={"user.b": b"2"}),
        ),
    )


def test_links_of_the_layer_lead_where_they_say(memory: Path) -> None:
    same(
        memory,
        archive(
            directory("."),
            directory("usr"),
            directory("usr/bin"),
            symlink("bin", "usr/bin"),
            symlink("usr/abs", "/usr/bin"),
            symlink("usr/bin/up", "../../../../usr"),
            file("bin/a", b"a"),
            file("usr/abs/b", b"b"),
            file("bin/up/bin/c", b"c"),
            hardlink("bin/d", "usr/abs/a"),
            directory("bin/e"),
            file("./bin//e/./f", b"f"),
            symlink("bin", "usr"),
            file("bin/g", b"g"),
        ),
    )


def test_implied_directories_are_roots(memory: Path) -> None:
    tar = archive(directory("."), file("a/b/c", b"x"), directory("a/d"), file("e/f"))
    same(memory, tar)


def test_without_an_entry_of_its_own_the_top_is_roots(memory: Path) -> None:
    same(memory, archive(file("f", b"x")))


REFUSED: list[list[Made]] = [
    [file("../f")],
    [file("a/../../f")],
    [file("n" * 256)],
    [file("a/" * 2049 + "f")],
    [file("f", b"x"), file("f/g")],
    [symlink("s", "nowhere"), file("s/f")],
    [symlink("s", "s"), file("s/f")],
    [symlink("s", "f/g"), file("f"), file("s/x")],
    [file(".", b"x")],
    [symlink(".", "x")],
    [hardlink("a", "b")],
    [hardlink("a", "a")],
    [file("a", b"x"), hardlink("./a", "a")],
    [directory("d"), hardlink("a", "d")],
    [hardlink("a", ".")],
    [directory("d"), file("d/f"), hardlink("d", "d/f")],
    [directory("d"), directory("d/e"), file("d/e/f"), hardlink("d", "d/e/f")],
    [file(".wh.")],
    [file(".wh..wh.opq/f"), file(".wh.a/b")],
    [file("a/.wh..")],
    [hardlink("a", ".wh.b")],
    [device("d", 4096, 0)],
    [device("d", 0, 1 << 20)],
    [symlink("s", "")],
    [symlink("s", b"t" * 4096)],
    [file("f", mtime_ns=2**63 * 10**9)],
]  # fmt: skip


@pytest.mark.parametrize("made", REFUSED)
def test_what_unpacking_refuses_is_refused(memory: Path, made: list[Made]) -> None:
    tar = archive(*made)
    with pytest.raises(InvalidArchive) as unpacking:
        indexes.unpacked(memory / "tree", tar)
    with pytest.raises(InvalidArchive) as building:
        indexes.build(memory / "index", tar)
    assert building.value.entry == unpacking.value.entry


def test_what_no_time_is_to_both(memory: Path) -> None:
    tar = archive(directory("d", mtime_ns=2**63 * 10**9))
    with pytest.raises(InvalidArchive):
        indexes.build(memory / "index", tar)


@pytest.mark.allow_log("0:0 is left out")
def test_a_device_that_would_be_a_whiteout_is_left_out(memory: Path) -> None:
    same(memory, archive(directory("."), device("w", 0, 0), device("b", 0, 0, Type.BLOCK)))


def test_the_same_tar_gives_the_same_bytes(memory: Path, debian_root: Path) -> None:
    one = indexes.build(memory / "one", debian_root)
    two = indexes.build(memory / "two", debian_root)
    assert one.path.read_bytes() == two.path.read_bytes()


def test_five_gigabytes_in_one_file(memory: Path) -> None:
    size = 5 << 30
    tar = memory / "big.tar"
    from lamina.archive.tar import encode

    entry = tars.file("big", b"")[0]
    entry.size = size
    header = encode(entry)
    with tar.open("wb") as sink:
        sink.write(archive(directory("."), file("first", b"1"))[:-1024])
        begin = sink.tell() + len(header)
        sink.write(header)
        sink.truncate(begin + size)
        sink.seek(begin + size - 5)
        sink.write(b"end.!")
        sink.seek(begin + (3 << 30))
        sink.write(b"middle")
        sink.seek(begin + size)
        sink.write(bytes(1024))
    index = indexes.build(memory / "index", tar)
    with index.mounted() as root, (root / "big").open("rb") as big:
        assert (root / "big").stat().st_size == size
        assert os.pread(big.fileno(), 6, 3 << 30) == b"middle"
        assert os.pread(big.fileno(), 10, size - 5) == b"end.!"
    with index.open() as image:
        inode = image.find(b"big")
        assert image.read(inode, (3 << 30) - 1, 8) == b"\0middle\0"
        assert image.read(inode, size - 5) == b"end.!"


def test_a_deep_tree(memory: Path) -> None:
    made = [directory("."), *(directory("d/" * depth) for depth in range(1, 800))]
    made.append(file("d/" * 799 + "f", b"deep"))
    same(memory, archive(*made))


def test_hard_links_in_numbers(memory: Path) -> None:
    made = [directory("."), directory("d"), file("first", b"content")]
    made += [hardlink(f"d/{number}", "first") for number in range(5000)]
    made += [file("first", b"another")]
    same(memory, archive(*made))


def test_a_hundred_thousand_files_in_one_directory(memory: Path) -> None:
    names = [b"file%d" % number for number in range(100_000)]
    made = [directory("."), *(file(name, name[-1:]) for name in names)]
    index = indexes.build(memory / "index", archive(*made))
    with index.mounted() as root:
        assert sorted(os.listdir(os.fsencode(root))) == sorted(names)
        for name in names[::997]:
            assert (root / os.fsdecode(name)).read_bytes() == name[-1:]
    with index.open() as image:
        assert [entry.name for entry in image.entries(image.root)] == sorted(names)
        for name in names[::997]:
            assert image.read(image.find(name)) == name[-1:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("directories", [1, 1000])
def test_a_million_files(memory: Path, directories: int) -> None:
    made = [directory("."), *(directory(f"d{number}") for number in range(directories))]
    made += [file(f"d{number % directories}/file{number}") for number in range(1_000_000)]
    index = indexes.build(memory / "index", archive(*made))
    with index.mounted() as root:
        found = {entry: set(os.listdir(root / entry)) for entry in os.listdir(root)}
        assert (root / "d0/file0").stat().st_size == 0
    assert len(found) == directories
    assert sum(map(len, found.values())) == 1_000_000
    with index.open() as image:
        for name, names in found.items():
            inside = image.entries(image.find(name.encode()))
            assert {entry.name.decode() for entry in inside} == names
