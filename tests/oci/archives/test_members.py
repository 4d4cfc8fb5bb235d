"""The members of an archive as files, whatever the archive is like."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.errors import InvalidArchive, InvalidImage
from lamina.oci.archives import Members
from lamina.oci.archives.kinds import Kind
from tests import support
from tests.oci.archives.tars import Member, archive

LAYOUT = Member("oci-layout", b"{}")


@contextmanager
def opened(path: Path, members: Iterable[Member] | bytes, start: int = 0) -> Iterator[Members]:
    path.write_bytes(members if isinstance(members, bytes) else archive(members))
    file = io.FileIO(str(path), "rb")
    file.seek(start)
    found = Members(file, "an archive")
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.tar"


def read(members: Members, name: str) -> bytes:
    stream, size = members.open(name)
    with stream:
        data = stream.read()
    assert len(data) == size
    return data


def test_members_are_read_where_they_lie(path: Path) -> None:
    with opened(path, [LAYOUT, Member("./a/b", b"x" * 1000), Member("c", b"yz")]) as members:
        assert read(members, "a/b") == b"x" * 1000
        stream, _ = members.open("c")
        assert (stream.read(1), stream.read(5), stream.read(1)) == (b"y", b"z", b"")
        assert stream.seek(1) == 1
        assert stream.read() == b"z"
        assert members.kind is Kind.OCI
        with pytest.raises(FileNotFoundError):
            members.open("d")


def test_an_archive_may_begin_anywhere_in_a_file(path: Path) -> None:
    data = b"before" + archive([Member("a", b"content")])
    with opened(path, data, start=6) as members:
        assert read(members, "a") == b"content"


def test_big_members_are_passed_over_without_being_read(path: Path) -> None:
    """64 GiB of a hole would take a minute to read."""
    info = tarfile.TarInfo("big")
    info.size = 64 << 30
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(info.size, os.SEEK_CUR)
        file.write(archive([LAYOUT]))
    members = Members(io.FileIO(str(path), "rb"), "big")
    assert read(members, "oci-layout") == b"{}"
    stream, size = members.open("big")
    assert (size, stream.read(3)) == (64 << 30, b"\0\0\0")
    members.close()


def test_links_lead_to_other_members(path: Path) -> None:
    with opened(
        path,
        [
            Member("0/layer.tar", type=tarfile.SYMTYPE, link="../1/layer.tar"),
            Member("1/layer.tar", b"layer"),
            Member("2/layer.tar", type=tarfile.LNKTYPE, link="0/layer.tar"),
        ],
    ) as members:
        assert read(members, "0/layer.tar") == read(members, "2/layer.tar") == b"layer"


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (Member("x", type=tarfile.SYMTYPE, link="/etc/passwd"), "a link out of the archive"),
        (Member("x", type=tarfile.SYMTYPE, link="../x"), "a link out of the archive"),
        (Member("x", type=tarfile.LNKTYPE, link="a/../../x"), "a link out of the archive"),
        (Member("x", type=tarfile.SYMTYPE, link="x"), "without end"),
        (Member("x", type=tarfile.DIRTYPE), "no regular file"),
    ],
)
def test_what_is_no_file_is_not_read(path: Path, member: Member, why: str) -> None:
    with opened(path, [LAYOUT, member]) as members, pytest.raises(InvalidImage, match=why):
        members.open("x")


def test_a_link_to_nothing_is_not_there(path: Path) -> None:
    with (
        opened(path, [Member("x", type=tarfile.SYMTYPE, link="y")]) as members,
        pytest.raises(FileNotFoundError),
    ):
        members.open("x")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x"])
def test_names_out_of_the_archive_are_refused(path: Path, name: str) -> None:
    with pytest.raises(InvalidImage, match="has a member"), opened(path, [LAYOUT, Member(name)]):
        pass
    with (
        opened(path, [LAYOUT]) as members,
        pytest.raises(InvalidImage, match="names a path out of itself"),
    ):
        members.open(name)


def test_a_document_that_is_there_twice_is_refused(path: Path) -> None:
    """Who reads the first sees another image than who reads the last."""
    twice = [Member("manifest.json", b"[]"), Member("manifest.json", b"{}")]
    blobs = [Member("blobs/a", b"1"), Member("blobs/a", b"2")]
    with opened(path, [*twice, *blobs]) as members:
        with pytest.raises(InvalidImage, match="twice"):
            members.open("manifest.json")
        assert read(members, "blobs/a") == b"2"


def test_sparse_members_are_refused(path: Path, tmp_path: Path) -> None:
    support.need("tar")
    with (tmp_path / "oci-layout").open("wb") as file:
        file.truncate(1 << 20)
    for form in ("gnu", "posix"):
        support.run("tar", "-C", tmp_path, "-S", "-H", form, "-cf", path, "oci-layout")
        with (
            opened(path, path.read_bytes()) as members,
            pytest.raises(InvalidImage, match="sparse"),
        ):
            members.open("oci-layout")


@pytest.mark.parametrize("cut", [1, 511, 700, 1500, 3000])
def test_a_truncated_archive_is_one(path: Path, cut: int) -> None:
    data = archive([LAYOUT, Member("blobs/x", b"x" * 2000)])[: 512 * 7]
    with pytest.raises(InvalidArchive), opened(path, data[:-cut]):
        pass


@pytest.mark.parametrize("data", [b"", b"hello" * 1000])
def test_what_is_no_tar_is_refused(path: Path, data: bytes) -> None:
    with pytest.raises(InvalidArchive), opened(path, data):
        pass


def test_a_root_file_system_is_known_by_its_first_directory(path: Path) -> None:
    """What follows is not even looked at."""
    data = archive([Member("manifest.json"), Member("./etc/passwd")])[:1024] + b"rubbish" * 500
    with opened(path, data) as members:
        assert members.kind is Kind.PLAIN


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["oci-layout"], Kind.OCI),
        (["index.json", "blobs/sha256/x"], Kind.OCI),
        (["oci-layout", "manifest.json"], Kind.OCI),
        (["manifest.json", "x/layer.tar"], Kind.DOCKER),
        (["repositories", "x/layer.tar"], Kind.OLD_DOCKER),
        (["index.json"], Kind.PLAIN),
        (["a", "b"], Kind.PLAIN),
        (["manifest.json", "etc/passwd"], Kind.PLAIN),
    ],
)
def test_kinds_are_told_by_names(path: Path, names: list[str], kind: Kind) -> None:
    with opened(path, [Member(name) for name in names]) as members:
        assert members.kind is kind
