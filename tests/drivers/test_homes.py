"""Several homes, found again after a restart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.drivers.homes import Homes
from lamina.errors import (
    DriverUnsupported,
    InvalidName,
    LayerExists,
    LayerNotFound,
    OptionUnsupported,
    StoreError,
)
from lamina.kernel.idmap import IdMap, IdRange
from lamina.types import LayerId
from tests.support import need_filesystem

BASE, TOP = LayerId("base"), LayerId("top")


@contextmanager
def opened(tmp_path: Path, driver: str | None = "vfs", **options: str) -> Iterator[Homes]:
    homes = Homes(
        tmp_path / "state/one.json", tmp_path / "run", driver=driver, options=options
    )  # fmt: skip
    try:
        yield homes
    finally:
        homes.close()


def test_a_restart_knows_homes_options_and_owners(tmp_path: Path) -> None:
    ranges = (IdRange(0, 100000, 65536),)
    owners = IdMap(ranges, ranges)
    with opened(tmp_path) as homes:
        homes.begin(tmp_path / "a", idmap=owners).create(BASE)
    with opened(tmp_path, "overlay") as homes:
        found = homes.current()
        assert (found.name, found.home, found.idmap) == ("vfs", tmp_path / "a", owners)
        assert found.exists(BASE)


@pytest.mark.root
def test_a_driver_that_can_not_map_owners_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_filesystem("erofs")
    ranges = (IdRange(0, 100000, 65536),)
    owners = IdMap(ranges, ranges)
    with opened(tmp_path, None) as homes:
        assert homes.begin(tmp_path / "first", idmap=owners).name == "erofs"
        monkeypatch.setenv("PATH", "/nowhere")  # unshare(1) is not there
        assert homes.begin(tmp_path / "second", idmap=owners).name == "overlay"
        for home, name in (("first", None), ("third", "erofs")):
            with pytest.raises(DriverUnsupported, match="can't have other owners"):
                homes.begin(tmp_path / home, driver=name, idmap=owners)
        assert homes.current().home == tmp_path / "second"
        assert homes.begin(tmp_path / "third", driver="erofs").name == "erofs"


def test_layers_are_found_in_whichever_home_has_them(tmp_path: Path) -> None:
    with opened(tmp_path) as homes:
        first = homes.begin(tmp_path / "a")
        first.create(BASE)
        second = homes.begin(tmp_path / "b")
        assert homes.current() is second
        assert homes.of(BASE) is first
        assert homes.place(TOP, BASE) is first
        assert homes.place(TOP, None) is second
        with pytest.raises(LayerExists):
            homes.place(BASE, None)
        with pytest.raises(LayerNotFound, match="no such layer: top"):
            homes.place(LayerId("x"), TOP)
        with pytest.raises(LayerNotFound):
            homes.holding(TOP)


def test_a_home_taken_up_again_is_the_first(tmp_path: Path) -> None:
    with opened(tmp_path) as homes:
        homes.begin(tmp_path / "a")
        homes.begin(tmp_path / "b")
        homes.begin(tmp_path / "a")
        assert [driver.home for driver in homes.drivers()] == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("bad", ["..", "a/b", "", "-x", "x" * 201])
def test_what_is_no_id_is_refused(tmp_path: Path, bad: str) -> None:
    with opened(tmp_path) as homes:
        homes.begin(tmp_path / "a").create(BASE)
        with pytest.raises(InvalidName):
            homes.of(LayerId(bad))
        with pytest.raises(InvalidName):
            homes.place(LayerId("new"), LayerId(bad))


def test_a_home_of_another_driver_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, None) as homes:
        homes.begin(tmp_path / "a", driver="vfs")
        with pytest.raises(StoreError, match="holds layers of driver vfs, not aufs"):
            homes.begin(tmp_path / "a", driver="aufs")
        assert homes.begin(tmp_path / "a").name == "vfs", "what it was begun with is the default"


def test_a_directory_of_something_else_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").touch()
    (tmp_path / "file").touch()
    with opened(tmp_path) as homes:
        for bad in ("etc", "file"):
            with pytest.raises(StoreError):
                homes.begin(tmp_path / bad)
        assert os.listdir(tmp_path / "etc") == ["passwd"]
        with pytest.raises(InvalidName, match="absolute"):
            homes.begin(Path("relative"))


def test_a_refused_home_leaves_all_as_it_was(tmp_path: Path) -> None:
    with opened(tmp_path) as homes:
        homes.begin(tmp_path / "a")
        with pytest.raises(OptionUnsupported):
            homes.begin(tmp_path / "a", options={"colour": "red"})
        with pytest.raises(OptionUnsupported):
            homes.begin(tmp_path / "b", options={"colour": "red"})
        with pytest.raises(InvalidName, match="no driver is called"):
            homes.begin(tmp_path / "b", driver="none")
        assert [driver.home for driver in homes.drivers()] == [tmp_path / "a"]
    with opened(tmp_path) as homes:
        assert homes.current().home == tmp_path / "a"


def test_a_home_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path) as homes:
        homes.begin(tmp_path / "a")
        homes.begin(tmp_path / "b").close()
    (tmp_path / "b").rename(tmp_path / "moved")
    with opened(tmp_path) as homes:
        assert homes.current().home == tmp_path / "a"


@pytest.mark.allow_log("forgotten till the next start")
def test_a_damaged_old_home_does_not_stop_the_others(tmp_path: Path) -> None:
    with opened(tmp_path) as homes:
        homes.begin(tmp_path / "a").close()
        homes.begin(tmp_path / "b").create(BASE)
    (tmp_path / "a/layers").rmdir()
    (tmp_path / "a/layers").touch()
    with opened(tmp_path) as homes:
        assert not homes.of(TOP).exists(TOP)
        assert homes.holding(BASE).home == tmp_path / "b"


def test_one_file_has_one_server(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StoreError, match="another server"), opened(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"homes": [{"home": 1}]}', '{"x": 1}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/one.json").write_text(text)
    with pytest.raises(StoreError, match="damaged"), opened(tmp_path):
        pass


def test_without_a_home_there_is_no_driver(tmp_path: Path) -> None:
    with opened(tmp_path) as homes, pytest.raises(StoreError, match="no home"):
        homes.current()


def test_an_unknown_driver_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidName, match="no driver is called 'none'"), opened(tmp_path, "none"):
        pass
