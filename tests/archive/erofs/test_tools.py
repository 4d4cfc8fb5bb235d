"""What erofs-utils say of indexes.

Debian 12 has 1.5, which reads blocks of 4096 bytes alone; 512 came with 1.6. Up to 1.8.6 at least
fsck.erofs(1) takes the checksum of a superblock in a block of 512 bytes over a negative length,
and crashes; mkfs.erofs(1) writes none then. So it sees a copy that says there is no checksum.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.archive.erofs import indexes
from tests.archive.erofs.test_image import ARCHIVE
from tests.archive.tars import archive, directory, file
from tests.support import need, run

pytestmark = pytest.mark.root

_COMPATIBLE_OFFSET = 1024 + 8


def _need_blocks_of_512() -> None:
    need("fsck.erofs", "dump.erofs")
    said = subprocess.run(["fsck.erofs", "-V"], capture_output=True, text=True, check=False)
    version = re.search(r"(\d+)\.(\d+)", said.stdout + said.stderr)
    assert version is not None
    if (int(version[1]), int(version[2])) < (1, 6):
        pytest.skip(f"erofs-utils {version[0]} knows no blocks of 512 bytes")


def _accepted(index: indexes.Index) -> str:
    copy = index.path.with_name("copy")
    data = bytearray(index.path.read_bytes())
    data[_COMPATIBLE_OFFSET] &= 0xFE
    copy.write_bytes(data)
    run("fsck.erofs", *(f"--device={path}" for path in index.devices), copy)
    return run("dump.erofs", copy).stdout.decode()


def test_they_accept_an_index_with_everything_in_it(tmp_path: Path) -> None:
    _need_blocks_of_512()
    said = _accepted(indexes.build(tmp_path / "index", ARCHIVE))
    assert re.search(r"inode count: +21\n", said)


def test_they_accept_the_debian_root(tmp_path: Path, debian_root: Path) -> None:
    _need_blocks_of_512()
    index = indexes.build(tmp_path / "index", debian_root)
    assert index.built is not None
    assert re.search(rf"inode count: +{index.built.inodes}\n", _accepted(index))


def test_they_accept_a_merged_index(tmp_path: Path) -> None:
    _need_blocks_of_512()
    lower = indexes.build(tmp_path / "lower", ARCHIVE)
    upper = indexes.build(tmp_path / "upper", archive(directory("d"), file(".wh.f"), file("new")))
    assert "device_table" in _accepted(indexes.merge(tmp_path / "merged", [lower, upper]))


def test_an_index_of_mkfs_is_read(tmp_path: Path) -> None:
    _need_blocks_of_512()
    need("mkfs.erofs")
    ours = indexes.build(tmp_path / "ours", archive(directory("."), file("f", b"x" * 5000)))
    theirs = tmp_path / "theirs"
    made = subprocess.run(
        ["mkfs.erofs", "--tar=i", "-b512", theirs, ours.devices[0]],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("this mkfs.erofs has no --tar=i")
    with indexes.Index(theirs, ours.devices).open() as image:
        assert image.read(image.find(b"f")) == b"x" * 5000
