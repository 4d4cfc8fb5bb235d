"""Fixtures for all tests; CONTRIBUTING.md says how to use them, plugin.py has the rules."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import support, users

pytest_plugins = ["tests.plugin", "tests.registries"]

# --- file systems of their own


@contextmanager
def _loop_mounted(ground: Path, fstype: str, size: int, *mkfs: str) -> Iterator[Path]:
    """A new file system in an image file, mounted; all of it goes at the end."""
    if not support.is_root():
        support.missing("needs root (with the right to mount)")
    support.need(mkfs[0], "mount", "losetup")
    support.need_filesystem(fstype)
    image, target = ground / f"{fstype}.img", ground / fstype
    with image.open("wb") as file:
        file.truncate(size)
    support.run(*mkfs, image)
    target.mkdir()
    support.run("mount", "-o", "loop", image, target)
    try:
        target.chmod(0o755)
        yield target
    finally:
        support.run("umount", target)
        target.rmdir()
        image.unlink()


@contextmanager
def _fresh(file_system: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=file_system))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def _ext4(ground: Path) -> Iterator[Path]:
    mkfs = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard")
    with _loop_mounted(ground, "ext4", 2 << 30, *mkfs) as path:
        yield path


@pytest.fixture(scope="session")
def _xfs(ground: Path) -> Iterator[Path]:
    mkfs = ("mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1")
    with _loop_mounted(ground, "xfs", 2 << 30, *mkfs) as path:
        yield path


@pytest.fixture(scope="session")
def _btrfs(ground: Path) -> Iterator[Path]:
    mkfs = ("mkfs.btrfs", "-q", "-f", "-K")
    with _loop_mounted(ground, "btrfs", 2 << 30, *mkfs) as path:
        yield path


@pytest.fixture
def ext4(_ext4: Path) -> Iterator[Path]:
    """A fresh directory on a journaled ext4 of 2 GiB."""
    with _fresh(_ext4) as path:
        yield path


@pytest.fixture
def xfs(_xfs: Path) -> Iterator[Path]:
    """A fresh directory on an xfs of 2 GiB that can share extents (reflink)."""
    with _fresh(_xfs) as path:
        yield path


@pytest.fixture
def btrfs(_btrfs: Path) -> Iterator[Path]:
    """A fresh directory on a btrfs of 2 GiB."""
    with _fresh(_btrfs) as path:
        yield path


@pytest.fixture
def tmpfs_small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB and 1,000 inodes: soon full."""
    if not support.is_root():
        support.missing("needs root (with the right to mount)")
    target = tmp_path / "tmpfs-small"
    target.mkdir()
    options = "size=4m,nr_inodes=1000,mode=0755"
    support.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", target)
    try:
        yield target
    finally:
        support.run("umount", target)


# --- others to run things as, and roots to run things on


@pytest.fixture(scope="session")
def _reach(ground: Path) -> Iterator[users.Reach]:
    with users.reach(ground) as found:
        yield found


@pytest.fixture
def ordinary_user(ground: Path, _reach: users.Reach) -> Iterator[users.User]:
    """A user without rights: nobody when the tests run as root, else who runs them."""
    uid, gid = (users.NOBODY, users.NOBODY) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    home = Path(tempfile.mkdtemp(prefix="home-", dir=ground))
    for path in (home, home / "tmp", home / "run"):
        path.mkdir(mode=0o700, exist_ok=True)
        os.chown(path, uid, gid)
    try:
        yield users.User(uid, gid, home, _reach)
    finally:
        support.run("rm", "-rf", "--one-file-system", home)


@pytest.fixture(scope="session")
def debian_root() -> Path:
    """The tar of a Debian root with python3 and git in it (12,000 entries), made once."""
    from tests import debian

    return debian.root_tar()
