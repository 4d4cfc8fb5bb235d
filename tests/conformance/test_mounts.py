"""get and put are counted, across threads and processes, and survive a restart."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.drivers import Driver
from lamina.errors import LayerInUse
from lamina.kernel.mount import MNT_DETACH, umount2
from lamina.types import LayerId
from tests.conformance.conftest import Factory

BASE, BOX = LayerId("base"), LayerId("box")


@pytest.fixture
def box(driver: Driver) -> Driver:
    driver.create_read_write(BASE)
    with driver.mounted(BASE) as root:
        (root / "a").write_text("a")
    driver.create_read_write(BOX, BASE)
    return driver


@contextmanager
def other_process(factory: Factory, *lines: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has ``driver`` and ``BOX``, runs ``lines``, says so, and waits for a line."""
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from lamina.drivers import driver_class
        home, run = Path({str(factory.home)!r}), Path({str(factory.run)!r})
        driver = driver_class({factory.name!r})(home, run)
        BOX = {BOX!r}
    """) + "\n".join([*lines, "print('ready', flush=True)", "sys.stdin.readline()"])
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert child.stdin and child.stdout
    try:
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def mounts_of(factory: Factory) -> int:
    """How many unions stand; a home may be a mount point itself."""
    home = os.fsencode(factory.home) + b"/"
    return sum(home in line for line in Path("/proc/self/mountinfo").read_bytes().splitlines())


def test_the_last_put_unmounts(box: Driver, factory: Factory) -> None:
    first = box.get(BOX)
    standing = mounts_of(factory)
    assert box.get(BOX) == first
    assert mounts_of(factory) == standing
    box.put(BOX)
    assert (first / "a").read_text() == "a"
    box.put(BOX)
    assert mounts_of(factory) == 0


def test_a_put_too_many_does_no_harm(box: Driver, factory: Factory) -> None:
    box.put(BOX)
    root = box.get(BOX)
    assert (root / "a").read_text() == "a"
    box.put(BOX)
    box.put(BOX)
    assert mounts_of(factory) == 0


def test_two_processes_share_one_mount(box: Driver, factory: Factory) -> None:
    with other_process(factory, "(driver.get(BOX) / 'theirs').touch()"):
        root = box.get(BOX)
        assert (root / "theirs").exists()
        assert mounts_of(factory) <= 1
        box.put(BOX)
        assert (root / "theirs").exists(), "unmounted under the other process"
        (root / "ours").touch()
    root = box.get(BOX)
    assert (root / "ours").exists()
    box.put(BOX)
    assert mounts_of(factory) == 0


def test_a_dead_process_leaves_no_count(box: Driver, factory: Factory) -> None:
    with other_process(factory, "driver.get(BOX)", "driver.get(BOX)") as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    box.get(BOX)
    box.put(BOX)
    assert mounts_of(factory) == 0


def test_a_mount_of_another_process_is_not_removed(box: Driver, factory: Factory) -> None:
    with other_process(factory, "driver.get(BOX)"):
        with pytest.raises(LayerInUse, match="mounted"):
            box.remove(BOX)
        assert box.exists(BOX)
    box.remove(BOX)
    assert not box.exists(BOX)


def test_a_forked_child_does_not_own_its_parents_references(box: Driver) -> None:
    root = box.get(BOX)
    pid = os.fork()
    if pid == 0:
        try:
            box.get(BOX)
            box.put(BOX)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (root / "a").exists(), "the child's put unmounted the parent's mount"
    box.put(BOX)


def test_a_pin_outlives_the_process_that_took_it(box: Driver, factory: Factory) -> None:
    with other_process(factory, "driver.pin(BOX)") as child:
        child.kill()
        child.wait()
    root = box.get(BOX)
    box.put(BOX)
    assert (root / "a").exists()
    with pytest.raises(LayerInUse):
        box.remove(BOX)
    assert box.unpin(BOX)
    assert not box.unpin(BOX)
    assert mounts_of(factory) == 0
    box.remove(BOX)


def test_a_restart_finds_mounts_standing(box: Driver, factory: Factory) -> None:
    with other_process(factory, "(driver.get(BOX) / 'written').write_text('before')") as child:
        child.kill()
        child.wait()
    again = factory.make()
    assert (again.get(BOX) / "written").read_text() == "before"
    again.put(BOX)
    assert mounts_of(factory) == 0


def test_cleanup_unmounts_what_nobody_refers_to(box: Driver, factory: Factory) -> None:
    box.get(BOX)
    with other_process(factory, "driver.create_read_write('other', 'base')", "driver.get('other')"):
        box.cleanup()
        assert mounts_of(factory) <= 1
    factory.make().cleanup()
    assert mounts_of(factory) == 0


def test_many_threads_on_one_layer(box: Driver, factory: Factory) -> None:
    def use(number: int) -> None:
        for _ in range(20):
            with box.mounted(BOX) as root:
                (root / f"{number}").touch()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert mounts_of(factory) == 0
    with box.mounted(BOX) as root:
        assert sorted(p.name for p in root.iterdir()) == [
            "0",
            "1",
            "2",
            "3",
            "4",
            "5",
            "6",
            "7",
            "a",
        ]


def _cycle(factory: Factory, ids: list[str]) -> None:
    driver = factory.make()
    for id in map(LayerId, ids):
        driver.create_read_write(id, BASE)
        with driver.mounted(id) as root:
            (root / "mine").write_text(id)
        with driver.mounted(id) as root:
            assert (root / "mine").read_text() == id
        driver.remove(id)
    driver.cleanup()


def test_256_ids_at_once_from_several_processes(box: Driver, factory: Factory) -> None:
    ids = [f"id-{number}" for number in range(256)]
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_cycle, args=(factory, ids[start::4])) for start in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
        child.close()
    assert sorted(box.ids()) == [BASE, BOX]
    assert mounts_of(factory) == 0


def test_256_ids_at_once_from_threads(box: Driver, factory: Factory) -> None:
    def use(number: int) -> None:
        id = LayerId(f"t{number}")
        box.create_read_write(id, BASE)
        with box.mounted(id) as root:
            (root / "mine").write_text(id)
        assert [str(c) for c in box.changes(id, BASE)] == ["A /mine"]
        box.remove(id)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(256)))
    assert sorted(box.ids()) == [BASE, BOX]
    assert mounts_of(factory) == 0


def test_one_id_created_by_many_at_once_is_made_once(driver: Driver) -> None:
    from lamina.errors import LayerExists

    driver.create(BASE)

    def make(_: int) -> bool:
        try:
            driver.create(BOX, BASE)
        except LayerExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(make, range(32))) == 1


def test_a_layer_and_its_parents_removal_race_to_one_winner(driver: Driver) -> None:
    from lamina.errors import LayerNotFound

    def child(number: int) -> bool:
        try:
            driver.create(LayerId(f"child{number}"), LayerId(f"parent{number}"))
        except LayerNotFound:
            return False
        return True

    def gone(number: int) -> bool:
        try:
            driver.remove(LayerId(f"parent{number}"))
        except LayerInUse:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        for number in range(50):
            driver.create(LayerId(f"parent{number}"))
            made, removed = pool.submit(child, number), pool.submit(gone, number)
            assert made.result() != removed.result()
            assert driver.exists(LayerId(f"parent{number}")) == made.result()


def test_pins_of_a_mount_that_someone_took_away_count_for_nothing(
    box: Driver, factory: Factory
) -> None:
    root = box.pin(BOX, here=True)
    box.pin(BOX, here=True)
    mounted = os.path.ismount(root)
    if mounted:
        umount2(os.fspath(root), MNT_DETACH)
    assert (box.pin(BOX, here=True) / "a").read_text() == "a"
    assert box.unpin(BOX)
    assert mounts_of(factory) == 0
    assert box.unpin(BOX) is not mounted, "what needs no mount has all its pins"
    box.unpin(BOX)


def test_cleanup_gives_pins_back_when_it_is_to(box: Driver, factory: Factory) -> None:
    root = box.pin(BOX)
    box.pin(BASE)
    box.cleanup()
    assert (root / "a").exists()
    box = factory.make()
    box.cleanup(pins=True)
    assert mounts_of(factory) == 0
    assert not box.unpin(BOX)
    assert not box.unpin(BASE)


def test_a_removal_can_do_away_with_pins(box: Driver, factory: Factory) -> None:
    box.pin(BOX)
    box.pin(BASE)
    with pytest.raises(LayerInUse, match="mounted"):
        box.remove(BOX)
    with pytest.raises(LayerInUse, match="child"):
        box.remove(BASE, pins=True)
    box.remove(BOX, pins=True)
    assert mounts_of(factory) == 0
    assert box.unpin(BASE)
