"""A process that dies or is interrupted anywhere leaves the old state or the new one."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.kernel.mountinfo import mounts_below
from lamina.store import Store
from tests.store import children
from tests.store.conftest import tar
from tests.store.faults import Fault, die, in_child, interrupt

Scenario = Callable[[Store], None]


def _import(store: Store) -> None:
    store.import_tar(io.BytesIO(tar({"etc": None, "etc/a": b"1" * 5000})), "new")


def _commit(store: Store) -> None:
    with store.container("image", name="box") as box:
        (box.root / "etc/motd").write_text("changed")
        box.commit("new")


def _branch(store: Store) -> None:
    with store.container("image", name="box", keep=True) as box:
        (box.root / "a").write_text("1")
        box.snapshot("s")
        (box.root / "b").write_text("1")
        twin = box.fork("twin")
        box.rollback("s")
    twin.remove()
    box.remove()


def _squash(store: Store) -> None:
    with store.container("image") as box:
        (box.root / "a").write_text("1")
        image = box.commit("new")
    store.squash(image, name="new")


def _remove(store: Store) -> None:
    store.import_tar(io.BytesIO(tar({"x": b"1"})), "image")
    store.prune(unused=True)


SCENARIOS: list[Scenario] = [_import, _commit, _branch, _squash, _remove]


def _prepare(place: Path, driver: str, root_fs: bytes) -> Callable[[], Store]:
    def open_store() -> Store:
        return Store(place / "root", run=place / "run", driver=driver)

    with open_store() as store:
        store.import_tar(io.BytesIO(root_fs), "image")
    return open_store


def _points(scenario: Scenario, place: Path, driver: str, root_fs: bytes, most: int) -> list[int]:
    """Where to strike: spread over all the calls that the scenario makes."""
    with _prepare(place, driver, root_fs)() as store, Fault(0, die) as fault:
        scenario(store)
    step = max(1, fault.count // most)
    return list(range(1, fault.count + 1, step))


def _hold_to_order(store: Store) -> None:
    """What must be true of a store that nobody works on."""
    assert store.check(contents=True) == []
    with store._core.db.read() as tx:
        assert tx.rows("SELECT * FROM pending") == []
        assert tx.rows("SELECT * FROM holds") == []
    own = store._core.leases.token
    assert {name.removesuffix(".lock") for name in os.listdir(store.root / "staging")} == {own}
    mine = os.listdir(store.driver.home / "staging")
    assert all(name.startswith(f"{os.getpid()}-") for name in mine)
    containers = store.run / "containers"
    assert not containers.exists() or os.listdir(containers) == []
    assert mounts_below(store.root) == []
    for image in store.images:
        with store.container(image) as box:
            assert (box.root).is_dir()
    for kept in store.containers:
        with kept.mounted() as root:
            assert (root / "etc").is_dir()


def _clear(store: Store) -> None:
    store.prune(containers=True, unused=True)
    assert list(store.layers) == []
    assert list(store.driver.ids()) == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__[1:])
def test_killed_anywhere(
    scenario: Scenario, driver: str, root_fs: bytes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    most = 10_000 if request.config.getoption("--slow") else 12
    for point in _points(scenario, tmp_path / "count", driver, root_fs, most):
        open_store = _prepare(tmp_path / str(point), driver, root_fs)

        def work(point: int = point, open_store: Callable[[], Store] = open_store) -> None:
            with open_store() as store, Fault(point, die):
                scenario(store)

        assert in_child(work) in (-signal.SIGKILL, 0), f"at call {point}"
        with open_store() as store:
            _hold_to_order(store)
            _clear(store)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__[1:])
def test_interrupted_anywhere(
    scenario: Scenario, driver: str, root_fs: bytes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    most = 10_000 if request.config.getoption("--slow") else 12
    for point in _points(scenario, tmp_path / "count", driver, root_fs, most):
        open_store = _prepare(tmp_path / str(point), driver, root_fs)
        with (
            open_store() as store,
            pytest.raises(KeyboardInterrupt),
            Fault(point, interrupt),
        ):
            scenario(store)
            raise KeyboardInterrupt  # the last call may come too late
        with open_store() as store:
            _hold_to_order(store)
            _clear(store)


def test_killed_at_any_time(driver: str, root_fs: bytes, tmp_path: Path) -> None:
    open_store = _prepare(tmp_path, driver, root_fs)
    code = """
        import io, sys
        from lamina.store import Store
        from tests.store.test_crashes import SCENARIOS
        print("ready", flush=True)
        while True:
            with Store(sys.argv[1], run=sys.argv[2], driver=sys.argv[3]) as store:
                store.import_tar(sys.argv[4], "image")
                for scenario in SCENARIOS:
                    scenario(store)
    """
    source = tmp_path / "root.tar"
    source.write_bytes(root_fs)
    for delay in (0.01, 0.05, 0.13, 0.29, 0.4):
        child = children.start(
            code, tmp_path / "root", tmp_path / "run", driver, source, stdout=children.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        threading.Event().wait(delay)
        child.kill()
        child.communicate()
        with open_store() as store:
            _hold_to_order(store)
            store.prune(containers=True)
    with open_store() as store:
        _clear(store)
