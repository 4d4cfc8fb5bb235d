"""What only the overlay driver has: mount calls, frozen parents, volatile, size, quotas."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.drivers import overlaymount
from lamina.drivers.overlay import OverlayDriver
from lamina.errors import DriverUnsupported, LayerBroken, LayerNotFound, OptionUnsupported
from lamina.kernel.mountinfo import mount_at
from lamina.types import LayerId
from tests import support
from tests.conformance.trees import tar
from tests.users import User

pytestmark = pytest.mark.root

BASE, BOX = LayerId("base"), LayerId("box")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[OverlayDriver]:
    made = OverlayDriver(tmp_path / "overlay", tmp_path / "run")
    made.create(BASE)
    made.apply_diff(BASE, None, tar(("a", b"a"), "d/", "d/x"))
    yield made
    made.cleanup()


@pytest.fixture(params=["by descriptor", "classic"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "classic":
        monkeypatch.setattr(overlaymount, "by_descriptor", lambda: False)
    elif not overlaymount.by_descriptor():
        pytest.skip("overlayfs takes no descriptors here (Linux 6.13)")
    return str(request.param)


@pytest.mark.parametrize("depth", [1, 3, 500])
def test_both_ways_to_mount_show_the_same(tmp_path: Path, way: str, depth: int) -> None:
    lowers = []
    for number in range(depth):
        lower = tmp_path / ("long name " * 20) / str(number)
        lower.mkdir(parents=True)
        (lower / f"{number}").touch()
        (lower / "top").write_text(str(number))
        lowers.append(str(lower))
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    merged = tmp_path / "merged"
    spec = overlaymount.Overlay(lowers, str(tmp_path / "upper"), str(tmp_path / "work"))
    cwd = Path.cwd()
    spec.mount(str(merged))
    try:
        assert Path.cwd() == cwd
        assert len(os.listdir(merged)) == depth + 1
        assert (merged / "top").read_text() == "0"
        (merged / "new").touch()
        assert (tmp_path / "upper/new").exists()
    finally:
        support.run("umount", merged)


def test_redirects_metacopies_and_the_index_are_off(driver: OverlayDriver, way: str) -> None:
    driver.create_read_write(BOX, BASE)
    with driver.mounted(BOX) as root:
        point = mount_at(root)
        assert point is not None
        options = point.super_options.split(b",")
        assert b"metacopy=on" not in options
        assert b"index=on" not in options
        assert b"redirect_dir=on" not in options
        with pytest.raises(OSError, match="cross-device"):
            (root / "d").rename(root / "e")


def test_a_layer_with_children_is_shown_but_not_written(driver: OverlayDriver) -> None:
    driver.create_read_write(BOX, BASE)
    with driver.mounted(BOX) as root:
        (root / "before").touch()
    driver.create_read_write(LayerId("child"), BOX)
    with driver.mounted(BOX) as root:
        assert (root / "before").exists()
        with pytest.raises(OSError, match="Read-only"):
            (root / "after").touch()
    driver.remove(LayerId("child"))
    with driver.mounted(BOX) as root:
        (root / "after").touch()


def test_a_broken_chain_says_so(driver: OverlayDriver) -> None:
    driver.create_read_write(BOX, BASE)
    support.run("rm", "-rf", driver.home / "layers/base")
    with pytest.raises(LayerBroken, match="its parent base is gone"):
        driver.get(BOX)


def test_a_damaged_parents_file_says_so(driver: OverlayDriver) -> None:
    driver.create_read_write(BOX, BASE)
    (driver.home / "layers/box/parents").write_bytes(b"\xff\xfe../..\n")
    with pytest.raises(LayerBroken, match="damaged"):
        driver.get(BOX)


def test_a_volatile_layer_is_mounted_volatile_and_again(driver: OverlayDriver) -> None:
    driver.create_read_write(BOX, BASE, options={"volatile": "true"})
    for _ in range(2):
        with driver.mounted(BOX) as root:
            point = mount_at(root)
            assert point is not None
            assert b"volatile" in point.super_options
            (root / "file").touch()


def test_a_volatile_layer_is_not_used_after_the_machine_went_down(driver: OverlayDriver) -> None:
    driver.create_read_write(BOX, BASE, options={"volatile": "true"})
    with driver.mounted(BOX):
        pass
    (driver.run / "box.volatile").unlink()  # as a boot empties /run
    with pytest.raises(LayerBroken, match="volatile"):
        driver.get(BOX)


@pytest.mark.parametrize("bad", ["", "x", "-1", "0", "1Q", "9" * 400, "99999999T", "\u0663"])
def test_a_size_that_is_none_is_refused(driver: OverlayDriver, bad: str) -> None:
    with pytest.raises(OptionUnsupported, match="size"):
        driver.create_read_write(BOX, BASE, options={"size": bad})
    with pytest.raises(LayerNotFound):
        driver.parent(BOX)


def test_a_size_without_project_quota_is_refused(driver: OverlayDriver) -> None:
    from lamina.kernel import quota

    if quota.supported(driver.home) is None:
        pytest.skip("this file system has project quotas")
    with pytest.raises(OptionUnsupported, match=r"size: .*quota"):
        driver.create_read_write(BOX, BASE, options={"size": "10M"})
    assert not driver.exists(BOX)


def test_the_limit_of_a_removed_layer_is_lifted(
    driver: OverlayDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of the kernel; quotas themselves take a kernel that has them."""
    from lamina.kernel import quota

    limits: dict[int, int] = {}
    projects: list[int] = []
    monkeypatch.setattr(quota, "supported", lambda path: None)
    monkeypatch.setattr(quota, "get_limit", lambda path, project: (0, limits.get(project, 0)))
    monkeypatch.setattr(
        quota, "set_limit", lambda path, project, size: limits.update({project: size})
    )
    monkeypatch.setattr(quota, "set_project", lambda path, project: projects.append(project))
    driver.create_read_write(BOX, BASE, options={"size": "10M"})
    assert limits == {projects[0]: 10 << 20}
    driver.remove(BOX)
    assert limits == {projects[0]: 0}


def test_the_machine_itself_as_base(driver: OverlayDriver) -> None:
    driver.create_read_write(BOX, options={"base": "/"})
    with driver.mounted(BOX) as root:
        assert (root / "etc/passwd").read_bytes() == Path("/etc/passwd").read_bytes()
        (root / "lamina-was-here").touch()
    assert not Path("/lamina-was-here").exists()
    assert [str(c) for c in driver.changes(BOX)] == ["A /lamina-was-here"]


def test_a_layer_on_xfs_and_btrfs(xfs: Path, btrfs: Path) -> None:
    for place in (xfs, btrfs):
        driver = OverlayDriver(place / "overlay", place / "run")
        OverlayDriver.probe(place / "overlay")
        driver.create(BASE)
        driver.apply_diff(BASE, None, tar("a", "d/", "d/x"))
        driver.create_read_write(BOX, BASE)
        with driver.mounted(BOX) as root:
            (root / "a").unlink()
            (root / "d/y").touch()
        assert [str(c) for c in driver.changes(BOX, BASE)] == ["D /a", "C /d", "A /d/y"]
        driver.cleanup()


def test_a_full_disk_leaves_the_layer_as_it_was(tmpfs_small: Path, tmp_path: Path) -> None:
    driver = OverlayDriver(tmpfs_small / "overlay", tmp_path / "run")
    driver.create(BASE)
    with pytest.raises(OSError, match="No space left"):
        driver.apply_diff(BASE, None, tar("small", ("big", b"x" * (8 << 20))))
    with driver.mounted(BASE) as root:
        assert list(root.iterdir()) == []
    assert driver.apply_diff(BASE, None, tar(("small", b"fits"))) == 4
    driver.cleanup()


def test_an_overlay_on_an_overlay_is_refused_with_the_reason(driver: OverlayDriver) -> None:
    driver.create_read_write(BOX, BASE)
    with driver.mounted(BOX) as root, pytest.raises(DriverUnsupported, match="not on overlay"):
        OverlayDriver.probe(root / "var/lib/lamina")


def test_an_ordinary_user_is_told_what_it_takes(ordinary_user: User) -> None:
    said = ordinary_user.says(
        "from pathlib import Path\n"
        "from lamina.drivers.overlay import OverlayDriver\n"
        "try: OverlayDriver.probe(Path.home() / 'overlay')\n"
        "except Exception as error: print(error)\n"
    )
    assert "user namespace" in said


def test_in_a_user_namespace_the_markers_are_the_users(ordinary_user: User) -> None:
    said = ordinary_user.says(
        """
import io, os, tarfile
from pathlib import Path
from lamina.kernel import namespaces as ns
uid, gid = os.getuid(), os.getgid()
ns.unshare(ns.CLONE_NEWUSER | ns.CLONE_NEWNS)
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
from lamina.drivers.overlay import OverlayDriver
home = Path.home() / "overlay"
OverlayDriver.probe(home)
driver = OverlayDriver(home, Path.home() / "run")
driver.create_read_write("base")
with driver.mounted("base") as root:
    (root / "a").write_text("a")
    (root / "d").mkdir()
    (root / "d/x").touch()
driver.create_read_write("box", "base")
with driver.mounted("box") as root:
    (root / "a").unlink()
    (root / "d/x").unlink()
    (root / "d").rmdir()
    (root / "d").mkdir()
    (root / "d/y").touch()
print([str(c) for c in driver.changes("box", "base")])
driver.create("copy", "base")
with driver.diff("box", "base") as stream:
    driver.apply_diff("copy", "base", stream)
with driver.mounted("copy") as root:
    print(sorted(str(p.relative_to(root)) for p in root.rglob("*")))
print("user.overlay.opaque" in os.listxattr(home / "layers/copy/diff/d"))
driver.cleanup()
"""
    )
    assert said.splitlines() == [
        "['D /a', 'C /d', 'D /d/x', 'A /d/y']",
        "['d', 'd/y']",
        "True",
    ]
