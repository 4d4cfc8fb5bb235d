"""Layers that are unpacked side by side, before what they stand on is there."""

from __future__ import annotations

import gc
import io
import operator
import os
import tarfile
import threading
import tracemalloc
from contextlib import ExitStack
from functools import partial

import pytest

from lamina.drivers import Driver
from lamina.drivers.base import Staged
from lamina.errors import InvalidArchive, LayerInUse, LayerNotFound
from lamina.types import LayerId
from tests.conformance.conftest import Factory
from tests.conformance.trees import entry, facts, tar

BASE = tar(
    entry("etc", tarfile.DIRTYPE, mode=0o750),
    ("etc/passwd", b"root"),
    ("etc/gone", b"x"),
    "opt/",
    ("opt/old", b"y"),
).getvalue()
# Whiteouts (one that hides nothing), an opaque directory, a directory without an entry of its
# own, a hard link to a file of the layer below.
TOP = tar(
    "etc/.wh.gone",
    "etc/.wh.never",
    "opt/",
    "opt/.wh..wh..opq",
    ("opt/new", b"z"),
    entry("etc/shadow", tarfile.LNKTYPE, linkname="etc/passwd"),
).getvalue()
PARENT, CHILD = LayerId("parent"), LayerId("child")


@pytest.fixture
def other_driver(factory: Factory) -> Driver:
    """One of the same kind, over a home of its own."""
    return factory.beside().make()


def in_order(driver: Driver) -> None:
    driver.create(PARENT)
    driver.apply_diff(PARENT, None, io.BytesIO(BASE))
    driver.create(CHILD, PARENT)
    driver.apply_diff(CHILD, PARENT, io.BytesIO(TOP))


def test_layers_staged_side_by_side_are_those_applied_in_order(
    driver: Driver, other_driver: Driver
) -> None:
    in_order(other_driver)
    below_is_done = threading.Event()
    asked = threading.Event()
    with ExitStack() as stack:
        staged: dict[str, Staged] = {}

        def below() -> Staged:
            asked.set()
            assert below_is_done.wait(60)
            return staged["base"]

        def stage_top() -> None:
            staged["top"] = stack.enter_context(driver.stage(io.BytesIO(TOP), below))

        thread = threading.Thread(target=stage_top)
        thread.start()
        assert asked.wait(60)  # the upper layer is under way before the lower one began
        staged["base"] = stack.enter_context(driver.stage(io.BytesIO(BASE), lambda: None))
        below_is_done.set()
        thread.join(60)
        assert not driver.exists(PARENT)
        driver.create(PARENT)
        driver.place(PARENT, None, staged["base"])
        driver.create(CHILD, PARENT)
        driver.place(CHILD, PARENT, staged["top"])
    with driver.mounted(CHILD) as ours, other_driver.mounted(CHILD) as theirs:
        assert facts(ours) == facts(theirs)
    assert driver.changes(CHILD, PARENT) == other_driver.changes(CHILD, PARENT)
    assert driver.diff_size(CHILD, PARENT) == other_driver.diff_size(CHILD, PARENT)


def test_a_layer_is_staged_on_one_that_is_there(driver: Driver, other_driver: Driver) -> None:
    in_order(other_driver)
    driver.create(PARENT)
    driver.apply_diff(PARENT, None, io.BytesIO(BASE))
    with driver.stage(io.BytesIO(TOP), lambda: PARENT) as staged:
        driver.create(CHILD, PARENT)
        driver.place(CHILD, PARENT, staged)
    with driver.mounted(CHILD) as ours, other_driver.mounted(CHILD) as theirs:
        assert facts(ours) == facts(theirs)


def test_what_is_staged_is_on_disk_and_little_of_it_in_memory(driver: Driver) -> None:
    """An image has dozens of layers, all of which are staged before the first is placed."""
    open_before = len(os.listdir("/proc/self/fd"))
    staged: list[Staged] = []
    with ExitStack() as stack:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for number in range(20):
            below = partial(operator.itemgetter(-1), list(staged) or [None])
            layer = tar((f"dir{number}/file", b"x"), (f"opt/{number}", b"y"))
            staged.append(stack.enter_context(driver.stage(layer, below)))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        assert held < 4 << 20
        assert len(os.listdir("/proc/self/fd")) - open_before < 30  # aufs: a lock each


def test_what_is_not_placed_leaves_nothing(driver: Driver) -> None:
    with driver.stage(io.BytesIO(BASE), lambda: None) as staged:
        assert staged.unpacked.entries == 5
    assert list(driver.ids()) == []
    with pytest.raises(InvalidArchive), driver.stage(io.BytesIO(BASE[:700]), lambda: None):
        pass
    assert list(driver.ids()) == []


def test_what_below_raises_ends_the_staging(driver: Driver) -> None:
    def below() -> None:
        raise LayerNotFound("below")

    with pytest.raises(LayerNotFound), driver.stage(io.BytesIO(TOP), below):
        pass


def test_it_is_not_placed_where_it_does_not_belong(driver: Driver) -> None:
    driver.create(PARENT)
    driver.create(CHILD, PARENT)
    with driver.stage(io.BytesIO(BASE), lambda: None) as staged:
        with pytest.raises(LayerNotFound):
            driver.place(LayerId("nowhere"), None, staged)
        with pytest.raises(LayerNotFound):
            driver.place(CHILD, None, staged)
        with pytest.raises(LayerInUse):
            driver.place(PARENT, None, staged)
