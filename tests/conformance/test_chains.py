"""Deep chains: 128 layers everywhere, 500 where the driver can."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.drivers import Driver
from lamina.errors import MountError
from lamina.types import LayerId
from tests.conformance.trees import tar


def build(driver: Driver, depth: int) -> LayerId:
    """Layer ``n`` adds ``n``, rewrites ``top`` and takes away what layer ``n - 1`` added."""
    parent: LayerId | None = None
    for number in range(depth):
        id = LayerId(f"{number:03}")
        driver.create(id, parent)
        members = [f".wh.{number - 1}"] if number else ["kept"]
        driver.apply_diff(id, parent, tar(*members, f"{number}", ("top", b"%d" % number)))
        parent = id
    assert parent is not None
    return parent


@pytest.mark.parametrize("depth", [2, 20, 128])
def test_a_deep_chain_shows_the_sum_of_its_layers(driver: Driver, depth: int) -> None:
    top = build(driver, depth)
    driver.create_read_write(LayerId("box"), top)
    with driver.mounted(LayerId("box")) as root:
        assert sorted(os.listdir(root)) == sorted(["kept", "top", f"{depth - 1}"])
        assert (root / "top").read_text() == str(depth - 1)
        (root / "top").write_text("box")
    assert [str(c) for c in driver.changes(LayerId("box"), top)] == ["C /top"]


def test_500_layers_and_a_clear_word_beyond(driver: Driver) -> None:
    if driver.name not in ("overlay", "vfs"):
        pytest.skip(f"{driver.name} has its own limit")
    top = build(driver, 500)
    box = LayerId("box")
    driver.create_read_write(box, top)
    with driver.mounted(box) as root:
        assert sorted(os.listdir(root)) == ["499", "kept", "top"]
    if driver.name == "overlay":
        driver.create(LayerId("500"), top)
        driver.create_read_write(LayerId("deeper"), LayerId("500"))
        with pytest.raises(MountError, match="500"):
            driver.get(LayerId("deeper"))


def test_a_long_path_to_the_home(driver_name: str, tmp_path: Path) -> None:
    from lamina.drivers import driver_class
    from tests import support

    if not support.is_root():
        support.missing("needs root")
    home = tmp_path.joinpath(*["p" * 200] * 12) / driver_name
    driver = driver_class(driver_name)(home, tmp_path / "run")
    try:
        top = build(driver, 30)
        with driver.mounted(top) as root:
            assert (root / "top").read_text() == "29"
    finally:
        driver.cleanup()
