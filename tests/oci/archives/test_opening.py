"""Whatever may hold images is opened as what it is; what need not be copied is not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from lamina.archive.compression import Compression, compress
from lamina.errors import InvalidArchive, InvalidImage
from lamina.oci.archives import DockerArchive, PlainTar, open_archive
from lamina.oci.layout import Layout, LayoutDirectory
from tests.oci import images
from tests.oci.archives.tars import Member, archive, docker_members, oci_members

MADE = images.make({"a": os.urandom(3 << 20)}, {"b": b"b"})
OCI = archive(oci_members(MADE))
DOCKER = archive(docker_members(MADE))
ROOT = archive(
    [Member("./"), Member("./etc/passwd", b"root"), Member("./usr/x", os.urandom(3 << 20))]
)
LATE = archive([Member("data", os.urandom(3 << 20)), Member("./etc/passwd", b"root")])


def zstd(data: bytes) -> bytes:
    return b"".join(compress([data], Compression.ZSTD))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": zstd,
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
}


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    path.mkdir()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@contextmanager
def piped(data: bytes) -> Iterator[BinaryIO]:
    """The reading end of a pipe that ``data`` comes out of."""
    reader, writer = os.pipe()

    def write() -> None:
        with open(writer, "wb") as sink:
            try:
                sink.write(data)
            except BrokenPipeError:
                pass

    thread = threading.Thread(target=write)
    thread.start()
    with open(reader, "rb") as source:
        yield source
    thread.join()


@pytest.mark.parametrize("data", [OCI, DOCKER], ids=["oci", "docker"])
def test_a_plain_file_is_read_in_place(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    source = open_archive(path, Path("/nonexistent"))
    assert isinstance(source, Layout | DockerArchive)
    assert images.diff_ids(source) == images.made_diff_ids(MADE)
    source.close()


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("data", [OCI, DOCKER], ids=["oci", "docker"])
def test_a_compressed_file_is_spooled(path: Path, spool: Path, data: bytes, packer: str) -> None:
    path.write_bytes(PACKERS[packer](data))
    source = open_archive(path, spool)
    assert isinstance(source, Layout | DockerArchive)
    assert images.diff_ids(source) == images.made_diff_ids(MADE)
    assert list(spool.iterdir()) == []
    source.close()


@pytest.mark.parametrize("packer", [None, "gzip", "zstd"])
@pytest.mark.parametrize("data", [OCI, DOCKER], ids=["oci", "docker"])
def test_a_pipe_is_spooled(spool: Path, data: bytes, packer: str | None) -> None:
    with piped(PACKERS[packer](data) if packer else data) as stream:
        source = open_archive(stream, spool)
        assert isinstance(source, Layout | DockerArchive)
        assert images.diff_ids(source) == images.made_diff_ids(MADE)
        source.close()


def test_a_stream_in_memory_and_one_that_stands_further_on(path: Path, spool: Path) -> None:
    path.write_bytes(b"before" + OCI)
    with path.open("rb") as file:
        file.seek(6)
        for stream in (io.BytesIO(OCI), file):
            source = open_archive(stream, spool)
            assert isinstance(source, Layout)
            assert images.diff_ids(source) == images.made_diff_ids(MADE)
            source.close()
            assert not stream.closed


def plain(source: object) -> bytes:
    assert isinstance(source, PlainTar)
    data = source.stream.read()
    source.close()
    return data


@pytest.mark.parametrize("data", [ROOT, LATE], ids=["at once", "late"])
@pytest.mark.parametrize("packer", [None, "gzip", "xz"])
def test_a_root_file_system_is_handed_on_as_it_is(
    path: Path, spool: Path, data: bytes, packer: str | None
) -> None:
    packed = PACKERS[packer](data) if packer else data
    path.write_bytes(packed)
    assert plain(open_archive(path, spool)) == packed
    with path.open("rb") as file:
        assert plain(open_archive(file, spool)) == packed
        assert not file.closed


@pytest.mark.parametrize("packer", [None, "gzip", "xz"])
def test_a_root_file_system_from_a_pipe_is_not_spooled(packer: str | None) -> None:
    packed = PACKERS[packer](ROOT) if packer else ROOT
    with piped(packed) as stream:
        assert plain(open_archive(stream, Path("/nonexistent"))) == packed


def test_a_root_file_system_that_shows_late_comes_from_the_spool(spool: Path) -> None:
    with piped(PACKERS["gzip"](LATE)) as stream:
        assert plain(open_archive(stream, spool)) == LATE


def test_a_layout_s_directory_is_opened_as_one(tmp_path: Path, spool: Path) -> None:
    layout = LayoutDirectory.create(tmp_path / "layout")
    images.put(layout, MADE, "a:1")
    layout.close()
    source = open_archive(tmp_path / "layout", spool)
    assert isinstance(source, LayoutDirectory)
    assert images.diff_ids(source, "a:1") == images.made_diff_ids(MADE)
    source.close()
    with pytest.raises(InvalidImage, match="no image layout"):
        open_archive(spool, spool)


def test_a_fifo_in_the_file_system(tmp_path: Path, spool: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=fifo.write_bytes, args=(OCI,))
    thread.start()
    source = open_archive(fifo, spool)
    thread.join()
    assert isinstance(source, Layout)
    assert images.diff_ids(source) == images.made_diff_ids(MADE)
    source.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello\n" * 1000,
        gzip.compress(b"hello\n" * 1000),
        OCI[:100_000],
        gzip.compress(OCI)[:-10],
        gzip.compress(OCI)[: 1 << 20] + b"damage" + gzip.compress(OCI)[1 << 20 :],
        zstd(OCI)[:-10],
    ],
    ids=["empty", "text", "packed text", "cut", "gzip cut", "gzip damaged", "zstd cut"],
)
def test_what_is_damaged_or_no_archive_is_refused(path: Path, spool: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(InvalidArchive):
        open_archive(path, spool)
    with piped(data) as stream, pytest.raises(InvalidArchive):
        open_archive(stream, spool)
    assert list(spool.iterdir()) == []


def test_what_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_archive(tmp_path / "nothing", tmp_path)


def test_a_full_disk_leaves_nothing_in_the_spool(path: Path, tmpfs_small: Path) -> None:
    path.write_bytes(gzip.compress(archive([*oci_members(MADE), Member("x", b"\0" * (8 << 20))])))
    with pytest.raises(OSError, match="No space left"):
        open_archive(path, tmpfs_small)
    assert list(tmpfs_small.iterdir()) == []
    assert os.statvfs(tmpfs_small).f_bavail > 900
