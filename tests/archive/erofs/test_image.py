"""The reader on damaged and hostile indexes: an answer or InvalidArchive, and always an end."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamina.archive.erofs import Image, Layers, merge_indexes, open_image
from lamina.archive.erofs import format as f
from lamina.archive.erofs.inode import DirectoryEntry
from lamina.errors import InvalidArchive, LayerUnsupported
from tests.archive.erofs import indexes
from tests.archive.erofs.test_sparse import sparse
from tests.archive.tars import archive, device, directory, fifo, file, hardlink, symlink

ARCHIVE = archive(
    directory(".", xattrs={"user.top": b"1"}),
    directory("d", xattrs={"trusted.overlay.x": b"y", "user.large": b"v" * 9000}),
    *(file(f"d/{number:0100}", b"content") for number in range(12)),
    file("f", b"content" * 100, xattrs={"user.a": b"1", "security.b": b"2"}),
    hardlink("g", "f"),
    symlink("s", "target"),
    symlink("long", "t" * 600),
    device("null", 1, 3),
    fifo("p"),
    file(".wh.gone"),
    sparse(b"sparse", 100_000, (4096, 4096), (50_176, 512)),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> indexes.Index:
    return indexes.build(tmp_path_factory.mktemp("image"), ARCHIVE)


@pytest.fixture(scope="module")
def whole(made: indexes.Index) -> bytes:
    return made.path.read_bytes()


def sealed(data: bytearray) -> bytes:
    """With a right checksum, so that damage gets further than that."""
    block = data[f.SUPER_OFFSET : f.SUPER_OFFSET + f.BLOCK]
    block[f.CHECKSUM_OFFSET : f.CHECKSUM_OFFSET + 4] = bytes(4)
    start = f.SUPER_OFFSET + f.CHECKSUM_OFFSET
    data[start : start + 4] = f.checksum(block).to_bytes(4, "little")
    return bytes(data)


def look_at_everything(data: bytes, fds: tuple[int, ...], limit: int = 1 << 20) -> int:
    """All that the reader can be asked; how many names there were."""
    image = Image(data, fds)
    count = 0
    for path, inode in image.walk():
        count += 1
        image.xattrs(inode)
        if inode.is_symlink:
            image.readlink(inode)
        elif inode.is_file:
            image.read(inode, 0, limit)
            image.read(inode, inode.size // 2, 100)
        elif inode.is_directory:
            image.lookup(inode, b"m")
        Layers([image]).find(path)
    Layers([image]).names()
    return count


def attempt(data: bytes, made: indexes.Index, sink: Path) -> None:
    fds = tuple(os.open(path, os.O_RDONLY) for path in made.devices)
    try:
        look_at_everything(data, fds, 4096)
        with sink.open("wb") as out:
            merge_indexes([Image(data), Image(data)], out.fileno(), identity="sha256:11")
    except (InvalidArchive, LayerUnsupported):
        pass
    finally:
        for fd in fds:
            os.close(fd)


def test_an_undamaged_one_is_read(made: indexes.Index, whole: bytes) -> None:
    with made.open() as image:
        assert image.inodes == 21
        assert [slot.tag for slot in image.devices] == [b"5" * 64, b"beside"]
        assert image.find(b"") == image.root
        assert image.find(b"f").nlink == 2
        assert image.find(b"null").device == (1, 3)
        assert image.find(b"d/nothing") is None
        assert image.find(b"f/x") is None
        assert image.read(image.find(b"f"), 5, 9) == b"ntcontent"
        assert image.read(image.find(b"f"), 690) == b"entcontent"
        assert image.read(image.find(b"f"), 5000, 9) == b""
        entries = image.entries(image.find(b"d"))
        assert len(entries) == 12
        assert isinstance(entries[0], DirectoryEntry)
    fds = tuple(os.open(path, os.O_RDONLY) for path in made.devices)
    try:
        assert look_at_everything(whole, fds) == 22
    finally:
        for fd in fds:
            os.close(fd)


def test_contents_need_the_devices(whole: bytes) -> None:
    image = Image(whole)
    inode = image.find(b"f")
    assert inode is not None
    with pytest.raises(ValueError, match="not open"):
        image.read(inode)


@pytest.mark.parametrize("size", [0, 100, 1023, 1024, 1151, 1152, 2000])
def test_truncated_indexes(tmp_path: Path, whole: bytes, size: int) -> None:
    path = tmp_path / "index"
    path.write_bytes(whole[:size])
    with pytest.raises(InvalidArchive), open_image(path) as image:
        list(image.walk())


def test_a_damaged_superblock_is_noticed(whole: bytes) -> None:
    for position in range(f.SUPER_OFFSET, f.SUPER_OFFSET + 128):
        data = bytearray(whole)
        data[position] ^= 0xFF
        with pytest.raises(InvalidArchive):
            Image(bytes(data)).root  # noqa: B018


def test_a_short_device_is_noticed(tmp_path: Path, made: indexes.Index) -> None:
    short = tmp_path / "tar"
    short.write_bytes(made.devices[0].read_bytes()[:1000])
    with (
        open_image(made.path, [short, made.devices[1]]) as image,
        pytest.raises(InvalidArchive, match="shorter"),
    ):
        for _, inode in image.walk():
            if inode.is_file:
                image.read(inode)


def _entry_of(whole: bytes, name: bytes) -> int:
    """Position of the directory entry called ``name`` in the top directory."""
    image = Image(whole)
    inode = image.root
    block = whole[inode.behind : inode.behind + inode.size]
    for at in range(0, int.from_bytes(block[8:10], "little"), 12):
        start = int.from_bytes(block[at + 8 : at + 10], "little")
        if block[start:].startswith(name):
            return inode.behind + at
    raise AssertionError(name)


def test_all_devices_are_given_or_none(made: indexes.Index) -> None:
    with (
        pytest.raises(InvalidArchive, match="2 devices, not 1"),
        open_image(made.path, made.devices[:1]),
    ):
        pass


def test_a_directory_that_holds_itself_ends(whole: bytes) -> None:
    data = bytearray(whole)
    struct.pack_into("<Q", data, _entry_of(whole, b"d"), Image(whole).root.nid)
    with pytest.raises(InvalidArchive, match="two places"):
        list(Image(bytes(data)).walk())


@pytest.mark.parametrize("name", [b"\0", b"/", b"zz"])
def test_names_that_none_can_be(whole: bytes, name: bytes) -> None:
    inode = Image(whole).root
    data = bytearray(whole)
    at = whole.index(b"null", inode.behind)
    data[at : at + len(name)] = name
    with pytest.raises(InvalidArchive):
        list(Image(bytes(data)).walk())


changes = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=1000, deadline=2000)
@given(changes, st.booleans())
def test_any_damage_is_survived(
    tmp_path_factory: pytest.TempPathFactory,
    made: indexes.Index,
    whole: bytes,
    at: list[tuple[int, int]],
    early: bool,
) -> None:
    data = bytearray(whole)
    span = min(len(data) - f.SUPER_OFFSET, 2048) if early else len(data) - f.SUPER_OFFSET
    for position, value in at:
        data[f.SUPER_OFFSET + position % span] = value
    attempt(sealed(data), made, tmp_path_factory.getbasetemp() / "sink")


@settings(max_examples=500, deadline=2000)
@given(st.data())
def test_any_damage_to_an_inode_is_survived(
    tmp_path_factory: pytest.TempPathFactory,
    made: indexes.Index,
    whole: bytes,
    data: st.DataObject,
) -> None:
    inodes = [inode for _, inode in Image(whole).walk()]
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        inode = data.draw(st.sampled_from(inodes))
        start = inode.nid << f.SLOT_BITS
        field, size = data.draw(
            st.sampled_from([(0, 2), (2, 2), (4, 2), (8, 8), (16, 4), (32, 8), (44, 4)])
        )
        value = data.draw(
            st.sampled_from([0, 1, 2, 5, 9, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**62, 2**63])
            | st.integers(0, 2**64 - 1)
        )
        raw = (value % (1 << 8 * size)).to_bytes(size, "little")
        damaged[start + field : start + field + size] = raw
    attempt(bytes(damaged), made, tmp_path_factory.getbasetemp() / "sink")


@settings(max_examples=300, deadline=2000)
@given(st.binary(max_size=4096))
@example(b"\xe2\xe1\xf5\xe0")
def test_any_bytes_are_survived(
    tmp_path_factory: pytest.TempPathFactory, made: indexes.Index, data: bytes
) -> None:
    attempt(data, made, tmp_path_factory.getbasetemp() / "sink")
    head = f.MAGIC.to_bytes(4, "little") + data
    attempt(bytes(f.SUPER_OFFSET) + head, made, tmp_path_factory.getbasetemp() / "sink")
