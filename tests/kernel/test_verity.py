"""fs-verity where there is any, and a clear no where there is none."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from lamina.kernel import verity

pytestmark = pytest.mark.root


def _digest_of_a_block(data: bytes) -> str:
    """The digest of a file of one block (fsverity.rst, "fs-verity descriptor")."""
    root = hashlib.sha256(data.ljust(verity.BLOCK, b"\0")).digest()
    descriptor = bytes([1, 1, 12, 0]) + bytes(4) + len(data).to_bytes(8, "little")
    descriptor += root.ljust(64, b"\0") + bytes(32) + bytes(144)
    return "sha256:" + hashlib.sha256(descriptor).hexdigest()


@pytest.mark.parametrize("place", ["ext4", "xfs", "btrfs", "tmpfs_small"])
def test_a_file_has_it_or_is_as_it_was(place: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(place)
    path = directory / "file"
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDONLY)
    try:
        if not verity.enable(fd):
            assert not verity.supported(directory)
            with pytest.raises(OSError, match="Errno") as caught:
                verity.measure(fd)
            assert caught.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
            assert verity.is_absent(caught.value)
            path.write_bytes(b"changed")
            return
        assert verity.supported(directory)
        assert verity.enable(fd), "again"
        assert verity.measure(fd) == _digest_of_a_block(b"content")
        with pytest.raises(PermissionError):
            path.write_bytes(b"changed")
    finally:
        os.close(fd)


def test_a_pipe_has_none() -> None:
    read, write = os.pipe()
    try:
        assert not verity.enable(read)
    finally:
        os.close(read)
        os.close(write)
