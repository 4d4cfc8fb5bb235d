"""Copying in the kernel, around it, and by sharing blocks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from lamina.kernel import copy
from tests.support import run

MIB = 1 << 20


@pytest.fixture(params=["kernel", "sendfile", "buffer"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if request.param != "kernel":
        monkeypatch.setattr(os, "copy_file_range", refuse)
    if request.param == "buffer":
        monkeypatch.setattr(os, "sendfile", refuse)


@pytest.fixture
def data() -> bytes:
    return os.urandom(MIB + 12345)


def test_a_range_goes_to_the_targets_position(engine: None, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "src").write_bytes(data)
    with open(tmp_path / "src", "rb") as src, open(tmp_path / "dst", "w+b") as dst:
        os.write(dst.fileno(), b"head")
        assert copy.copy_range(src.fileno(), dst.fileno(), 700_000, 100) == 700_000
        assert os.lseek(src.fileno(), 0, os.SEEK_CUR) == 0
        assert copy.copy_range(src.fileno(), dst.fileno(), 10) == 10
        assert os.lseek(src.fileno(), 0, os.SEEK_CUR) == 10
    assert (tmp_path / "dst").read_bytes() == b"head" + data[100:700_100] + data[:10]


def test_the_end_of_the_source_ends_the_copy(engine: None, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "src").write_bytes(data)
    with open(tmp_path / "src", "rb") as src, open(tmp_path / "dst", "w+b") as dst:
        assert copy.copy_range(src.fileno(), dst.fileno(), 10 * MIB) == len(data)
        assert copy.copy_range(src.fileno(), dst.fileno(), 10 * MIB) == 0
    assert (tmp_path / "dst").read_bytes() == data


def test_a_pipe_can_be_the_source(engine: None, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"through the pipe")
    os.close(writer)
    with open(tmp_path / "dst", "w+b") as dst:
        assert copy.copy_range(reader, dst.fileno(), MIB) == 16
    os.close(reader)
    assert (tmp_path / "dst").read_bytes() == b"through the pipe"


def test_files_of_proc_that_claim_no_size_are_copied(engine: None, tmp_path: Path) -> None:
    with open("/proc/self/status", "rb") as src, open(tmp_path / "dst", "w+b") as dst:
        assert copy.copy_range(src.fileno(), dst.fileno(), MIB) > 100
    assert b"Pid:" in (tmp_path / "dst").read_bytes()


def test_a_target_opened_for_appending_is_appended_to(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(b"more")
    (tmp_path / "dst").write_bytes(b"some ")
    with open(tmp_path / "src", "rb") as src, open(tmp_path / "dst", "ab") as dst:
        assert copy.copy_range(src.fileno(), dst.fileno(), 100) == 4
    assert (tmp_path / "dst").read_bytes() == b"some more"


def test_a_real_error_is_an_error(engine: None, tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(b"data")
    with open(tmp_path / "src", "rb") as src, pytest.raises(OSError) as caught:
        copy.copy_range(src.fileno(), src.fileno(), 4, 0)
    assert caught.value.errno == errno.EBADF


def test_holes_stay_holes(engine: None, tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    pieces = {0: b"first", 20 * MIB: b"middle" * 1000, 40 * MIB: b"late"}
    with open(src, "wb") as file:
        for offset, content in pieces.items():
            file.seek(offset)
            file.write(content)
        file.truncate(64 * MIB)
    copied(src, dst)
    assert dst.stat().st_size == 64 * MIB
    assert dst.stat().st_blocks <= src.stat().st_blocks + 8
    run("cmp", src, dst)


def test_a_file_of_nothing_but_hole_takes_no_blocks(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    with open(src, "wb") as file:
        file.truncate(100 * MIB)
    copied(src, dst)
    assert (dst.stat().st_size, dst.stat().st_blocks) == (100 * MIB, 0)


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 3 * MIB + 1])
def test_dense_files_of_any_size_are_copied(engine: None, tmp_path: Path, size: int) -> None:
    (tmp_path / "src").write_bytes(os.urandom(size))
    copied(tmp_path / "src", tmp_path / "dst")
    assert (tmp_path / "dst").read_bytes() == (tmp_path / "src").read_bytes()


def test_a_source_that_shrank_leaves_zeros(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(b"x" * 5000)
    with open(tmp_path / "src", "rb") as src, open(tmp_path / "dst", "wb") as dst:
        copy.copy_file(src.fileno(), dst.fileno(), 6000)
    assert (tmp_path / "dst").read_bytes() == b"x" * 5000 + b"\0" * 1000


def test_the_data_of_a_file_that_cannot_say_is_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "lseek", refuse)
    assert copy.data_ranges(0, 77) == [(0, 77)]


def test_syncfs_takes_a_descriptor_and_refuses_a_bad_one(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        copy.syncfs(file.fileno())
    with pytest.raises(OSError) as caught:
        copy.syncfs(-1)
    assert caught.value.errno == errno.EBADF


def test_no_reflink_across_file_systems(tmp_path: Path) -> None:
    with open("/proc/self/status", "rb") as src, open(tmp_path / "dst", "wb") as dst:
        assert not copy.reflink(src.fileno(), dst.fileno())


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_a_copy_shares_blocks_where_the_file_system_can(
    request: pytest.FixtureRequest, fstype: str, data: bytes
) -> None:
    sharing: Path = request.getfixturevalue(fstype)
    src, dst = sharing / "src", sharing / "dst"
    src.write_bytes(data * 20)
    os.sync()
    before = os.statvfs(sharing).f_bfree * os.statvfs(sharing).f_frsize
    copied(src, dst)
    os.sync()
    after = os.statvfs(sharing).f_bfree * os.statvfs(sharing).f_frsize
    assert before - after < MIB, "20 MiB copied should cost next to nothing"
    run("cmp", src, dst)


def copied(src: Path, dst: Path) -> None:
    with open(src, "rb") as source, open(dst, "wb") as target:
        copy.copy_file(source.fileno(), target.fileno(), src.stat().st_size)
