"""Detached mounts as layers, also where overlayfs takes only what is attached (before 6.15)."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.drivers import overlaymount
from lamina.drivers.erofs import ErofsDriver
from lamina.drivers.overlaymount import Overlay
from lamina.errors import MountError
from lamina.kernel import mount, namespaces
from lamina.kernel.mountinfo import mounts_below
from lamina.types import LayerId
from tests import leaks
from tests.store.conftest import tar
from tests.store.faults import in_child
from tests.support import need_filesystem

pytestmark = pytest.mark.root

BELOW, TOP, BOX = LayerId("below"), LayerId("top"), LayerId("box")


@pytest.fixture(params=["Linux 6.15", "Linux 6.13", "Linux 5.2"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What overlayfs takes: detached mounts, descriptors, or paths alone."""
    kernel: str = request.param
    if kernel == "Linux 6.13":

        def refuse(self: Overlay, target: str) -> None:
            raise MountError(errno.EINVAL, "mount overlay", target, ("failed to clone lowerpath",))

        monkeypatch.setattr(Overlay, "_mount_by_descriptor", refuse)
    elif kernel == "Linux 5.2":
        monkeypatch.setattr(overlaymount, "by_descriptor", lambda: False)
    elif not overlaymount.by_descriptor():
        pytest.skip("this kernel is older")
    return kernel


@pytest.fixture
def driver(tmp_path: Path, kernel: str) -> Iterator[ErofsDriver]:
    need_filesystem("erofs")
    driver = ErofsDriver(tmp_path / "erofs", tmp_path / "run")
    yield driver
    driver.cleanup()


def _layer(driver: ErofsDriver, id: LayerId, parent: LayerId | None, name: str) -> None:
    driver.create(id, parent)
    driver.apply(id, parent, io.BytesIO(tar({name: name.encode(), "d/same": id.encode()})))


def test_a_container_on_layers_that_are_tars(driver: ErofsDriver, tmp_path: Path) -> None:
    before = leaks.Snapshot.take(str(tmp_path))
    _layer(driver, BELOW, None, "a")
    _layer(driver, TOP, BELOW, "b")
    driver.create_read_write(BOX, TOP)
    with driver.mounted(BOX) as root:
        assert sorted(os.listdir(root)) == ["a", "b", "d"]
        assert (root / "d/same").read_text() == TOP
        (root / "d/new").write_text("new")
        (root / "a").unlink()
        assert [each.target for each in mounts_below(str(tmp_path))] == [os.fsencode(root)]
    assert [str(change) for change in driver.changes(BOX, TOP)] == ["D /a", "C /d", "A /d/new"]
    assert mounts_below(str(tmp_path)) == []
    assert leaks.Snapshot.take(str(tmp_path)).loops == before.loops


def test_layers_one_by_one_beside_a_directory(driver: ErofsDriver) -> None:
    _layer(driver, BELOW, None, "a")
    driver.create_read_write(BOX, BELOW)
    with driver.mounted(BOX) as root:
        (root / "written").write_text("1")
    _layer(driver, TOP, BOX, "b")
    with driver.mounted(TOP) as root:
        assert sorted(os.listdir(root)) == ["a", "b", "d", "written"]
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").touch()


def test_in_a_chroot_that_is_no_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All mounts around it are shared: what is attached for a moment must not get out."""
    monkeypatch.setattr(overlaymount, "by_descriptor", lambda: False)
    monkeypatch.setattr(tempfile, "tempdir", "/")
    for name in ("proc", "merged"):
        (tmp_path / name).mkdir()

    def work() -> None:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        mount.mount(None, "/", None, mount.MS_SHARED | mount.MS_REC)
        mount.mount("proc", tmp_path / "proc", "proc")
        os.chroot(tmp_path)
        os.chdir("/")
        layers = [_detached_tmpfs(name) for name in ("a", "b")]
        overlay = Overlay([overlaymount.detached_path(fd) for fd in layers])
        overlay.mount("/merged")
        assert sorted(os.listdir("/merged")) == ["a", "b"]
        assert [each.target for each in mounts_below("/")] == [b"/proc", b"/merged"]

    assert in_child(work) == 0


def _detached_tmpfs(name: str) -> int:
    """A tmpfs with one directory."""
    with mount.FsContext("tmpfs") as context:
        context.create()
        fd = context.mount()
    os.mkdir(name, dir_fd=fd)
    return fd


def test_a_mount_that_fails_leaves_nothing(driver: ErofsDriver, tmp_path: Path) -> None:
    _layer(driver, BELOW, None, "a")
    driver.create_read_write(BOX, BELOW)
    work = Path(driver.layout.path(BOX, "work"))
    work.rename(work.with_name("elsewhere"))
    before = leaks.Snapshot.take(str(tmp_path))
    with pytest.raises(OSError, match="No such file"):
        driver.get(BOX)
    assert mounts_below(str(tmp_path)) == []
    assert leaks.Snapshot.take(str(tmp_path)).loops == before.loops
