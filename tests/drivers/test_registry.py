"""Which driver is chosen, and why the others are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.drivers import availability, choose, driver_class, register, registry
from lamina.errors import DriverUnsupported, InvalidName
from tests.support import need_filesystem
from tests.users import User


def test_an_unknown_driver_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidName, match="there are: erofs, overlay, aufs, vfs"):
        driver_class("zfs")


def test_every_known_driver_has_its_name() -> None:
    for name in registry.names():
        assert driver_class(name).name == name


@pytest.mark.root
def test_root_gets_erofs(tmp_path: Path) -> None:
    need_filesystem("erofs")
    assert choose(tmp_path / "not there yet") == "erofs"
    assert next(a.name for a in availability(tmp_path) if a.reason is None) == "erofs"
    assert list(tmp_path.iterdir()) == []


def test_a_store_keeps_the_driver_that_it_was_begun_with(tmp_path: Path) -> None:
    driver_class("vfs")(tmp_path / "vfs", tmp_path / "run").cleanup()
    assert choose(tmp_path) == "vfs"


def test_an_ordinary_user_gets_vfs_and_is_told_why(ordinary_user: User) -> None:
    said = ordinary_user.says(
        "from pathlib import Path\n"
        "from lamina.drivers import availability, choose\n"
        "print(choose(Path.home()))\n"
        "for a in availability(Path.home()): print(a.name, a.reason)\n"
    )
    assert said.splitlines()[0] == "vfs"
    assert "user namespace" in said


def test_a_driver_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KNOWN", dict(registry._KNOWN))
    register("mine", "lamina.drivers.vfs:VfsDriver", before="vfs")
    assert registry.names() == ["erofs", "overlay", "aufs", "mine", "vfs"]


def test_no_driver_at_all_gives_every_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_reason", lambda name, *_: f"{name} is out")
    with pytest.raises(DriverUnsupported, match=r"overlay is out; .*; vfs: vfs is out"):
        choose(tmp_path)
