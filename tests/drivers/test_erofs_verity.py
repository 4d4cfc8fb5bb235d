"""Layers on a file system with fs-verity, as the kernel sees them: scripts/verity-kernel has one.

What other kernels can show is in test_erofs.py.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.drivers.erofs import ErofsDriver
from lamina.errors import LayerBroken
from lamina.kernel import verity
from lamina.types import LayerId
from tests.store.conftest import tar
from tests.support import need_filesystem, run

pytestmark = pytest.mark.root

LAYER = LayerId("layer")
_MARK = b"what the layer holds " * 4096


class Disk:
    """An ext4 with fs-verity in an image file."""

    def __init__(self, image: Path, target: Path) -> None:
        self.image = image
        self.target = target

    @contextmanager
    def mounted(self) -> Iterator[ErofsDriver]:
        """A driver on it; it is unmounted after."""
        run("mount", "-o", "loop", self.image, self.target)
        try:
            if not verity.supported(self.target):
                pytest.skip("this kernel has no fs-verity (scripts/verity-kernel boots one)")
            driver = ErofsDriver(self.target / "erofs", self.target / "run")
            try:
                yield driver
            finally:
                driver.cleanup()
                driver.close()
        finally:
            run("umount", self.target)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    need_filesystem("erofs")
    image, target = tmp_path / "image", tmp_path / "target"
    target.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    run("mkfs.ext4", "-q", "-F", "-O", "verity", "-b", str(verity.BLOCK), image)
    return Disk(image, target)


def _make(driver: ErofsDriver, id: LayerId, content: bytes) -> Path:
    driver.create(id)
    driver.apply(id, None, io.BytesIO(tar({"file": content})))
    return Path(driver.layout.path(id, "tar"))


def test_the_kernel_refuses_to_write_a_layer(disk: Disk) -> None:
    with disk.mounted() as driver:
        path = _make(driver, LAYER, _MARK)
        for file in (path, path.with_name("index")):
            with pytest.raises(PermissionError):
                os.open(file, os.O_WRONLY)
            with pytest.raises(PermissionError):
                os.truncate(file, 0)
        with driver.mounted(LAYER) as root:
            assert (root / "file").read_bytes() == _MARK
        driver.remove(LAYER)
        assert not path.exists()


def test_a_tar_changed_below_the_file_system_cannot_be_read(disk: Disk) -> None:
    with disk.mounted() as driver:
        _make(driver, LAYER, _MARK)
    data = disk.image.read_bytes()
    place = data.index(_MARK[:8192])
    with open(disk.image, "r+b") as image:
        image.seek(place + 100)
        image.write(b"!")
    with disk.mounted() as driver:
        with driver.mounted(LAYER) as root, pytest.raises(OSError) as caught:
            (root / "file").read_bytes()
        assert caught.value.errno == errno.EIO
        with driver.diff(LAYER) as layer, pytest.raises(OSError) as caught:
            layer.read()
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("name", ["tar", "index"])
def test_a_file_in_the_place_of_another_is_found_by_the_mount(disk: Disk, name: str) -> None:
    with disk.mounted() as driver:
        path = _make(driver, LAYER, _MARK).with_name(name)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.unlink()
        path.write_bytes(data)
        with pytest.raises(LayerBroken, match=f"its {name} has no fs-verity any more"):
            driver.get(LAYER)
        with open(path, "rb") as file:
            assert verity.enable(file.fileno())
        with pytest.raises(LayerBroken, match=f"its {name} has digest sha256:"):
            driver.get(LAYER)


def test_a_full_disk_while_the_digests_are_made_leaves_no_layer(disk: Disk) -> None:
    with disk.mounted() as driver:
        driver.create(LAYER)
        free = _free(disk)
        layer = tar({"file": os.urandom(free - (200 << 10))})  # its hashes take 1/128 of it
        with pytest.raises(OSError) as caught:
            driver.apply(LAYER, None, io.BytesIO(layer))
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(driver.layout.path(LAYER, "diff")) == []
        driver.remove(LAYER)
        assert _free(disk) >= free - (64 << 10)


def _free(disk: Disk) -> int:
    return os.statvfs(disk.target).f_bfree * verity.BLOCK
