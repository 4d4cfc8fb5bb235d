"""A server that is killed, one that finds what it left, and two that want the same root."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from lamina.errors import LaminaError, StoreError
from lamina.serve.containerd.api import snapshots_pb2 as api
from lamina.store.snapshots import Kind, Snapshots
from lamina.types import LayerId
from tests.mounting import mounted
from tests.serve.containerd.client import SERVICE, Client
from tests.serve.containerd.conftest import Ground

PATIENCE = 60
pytestmark = pytest.mark.root


@contextmanager
def server(ground: Ground, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """``lamina serve containerd``, killed at the end if it still runs."""
    command: list[str | Path] = [
        sys.executable, "-m", "lamina", "--run-root", ground.run / "refs", "serve", "containerd",
        "--address", ground.socket, "--root", ground.root, "--driver", ground.driver, "--no-sync",
        *options,
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    before = ground.socket.lstat().st_ino if ground.socket.exists() else None
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not ground.socket.exists() or ground.socket.lstat().st_ino == before:
                if process.poll() is not None or time.monotonic() > deadline:
                    assert process.stderr
                    pytest.fail(process.stderr.read().decode())
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def client_of(ground: Ground) -> Iterator[Client]:
    client = Client(ground.socket)
    try:
        yield client
    finally:
        client.close()


def test_sigterm_ends_it_well(ground: Ground) -> None:
    with server(ground) as process, client_of(ground) as client:
        client.prepare("key")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert not ground.socket.exists()


def test_calls_under_way_end_before_the_server_does(ground: Ground) -> None:
    with server(ground) as process, client_of(ground) as client:
        client.prepare("first")
        request = api.PrepareSnapshotRequest(key="key").SerializeToString()
        call = client.channel.unary_unary(f"{SERVICE}/Prepare").future(request)
        process.terminate()
        try:
            call.result(PATIENCE)
        except grpc.RpcError:
            pass  # it came too late
        assert process.wait(PATIENCE) == 0
    with ground.open() as store:
        names = {info.name for info in store.list()}
        assert len(list(store.driver.ids())) == len(names)


def test_mounts_stand_while_it_is_away(ground: Ground, tmp_path: Path) -> None:
    with server(ground), client_of(ground) as client:
        with mounted(client.prepare("making"), tmp_path / "base") as root:
            (root / "file").write_text("base")
        client.commit("base", "making")
        mounts = client.prepare("box", "base")
    with mounted(mounts, tmp_path / "box") as root:
        (root / "new").write_text("while it was away")
        with server(ground), client_of(ground) as client:
            assert client.mounts("box") == mounts
            (root / "file").write_text("changed")
            if ground.driver == "aufs":
                return  # fuse-overlayfs shares no branch with another one while it is mounted
            client.commit("image", "box")
            with mounted(client.view("view", "image"), tmp_path / "view") as view:
                assert (view / "new").read_text() == "while it was away"
            client.remove("view")


@pytest.mark.parametrize("seed", range(3))
def test_killed_in_the_middle(ground: Ground, seed: int) -> None:
    """Whatever it was at: what it answered is there, and nothing else stays."""
    chance = random.Random(seed)
    told: dict[str, Kind] = {}
    removed: set[str] = set()
    with server(ground) as process, client_of(ground) as client:
        client.prepare("making")
        client.commit("base", "making")
        kill_at = time.monotonic() + 0.3 + chance.random() / 2
        number = 0
        try:
            while True:
                number += 1
                key = f"key {number}"
                if time.monotonic() > kill_at:
                    process.send_signal(signal.SIGKILL)
                    client.timeout = 3
                    kill_at = float("inf")
                client.prepare(key, "base")
                told[key] = Kind.ACTIVE
                if number % 3 == 0:
                    client.commit(f"{key} done", key)
                    del told[key]
                    told[f"{key} done"] = Kind.COMMITTED
                elif number % 3 == 1:
                    client.remove(key)
                    del told[key]
                    removed.add(key)
        except (grpc.RpcError, LaminaError):
            pass
    with server(ground), client_of(ground) as client:
        there = {info.name: info.kind for info in client.list()}
        assert removed.isdisjoint(there)
        # The last call may or may not have come through.
        unsure = {f"key {number}", f"key {number} done"}
        expected = {"base": Kind.COMMITTED, **told}
        assert {k: v for k, v in there.items() if k not in unsure} == {
            k: v for k, v in expected.items() if k not in unsure
        }
        for name, kind in there.items():
            if kind is Kind.ACTIVE:
                client.mounts(name)
        client.cleanup()
        for name in there:
            if name != "base":
                client.remove(name)
        client.remove("base")
        client.cleanup()
    with ground.open() as store:
        assert list(store.driver.ids()) == []
        staging = store.driver.home / "staging"
        assert not staging.exists() or os.listdir(staging) == []


def test_leftovers_are_removed_by_cleanup(ground: Ground) -> None:
    with ground.open() as store:
        store.prepare("making")
        store.commit("base", "making")
        for number in (1000, 1001):
            parent = LayerId("1000") if number == 1001 else None
            store.driver.create_read_write(LayerId(str(number)), parent)
        assert store.cleanup() == 2 or len(list(store.driver.ids())) == 1
        assert list(store.driver.ids()) == ["1"]


def test_parts_of_a_layer_are_removed_by_cleanup(ground: Ground) -> None:
    if ground.driver != "aufs":
        pytest.skip("a layer is one directory there")
    with ground.open() as store:
        store.prepare("making")
        store.commit("base", "making")
        for number in ("1000", "1001"):  # half made, or half removed
            store.driver.create_read_write(LayerId(number), LayerId("1"))
        home = store.driver.home
        (home / "diff/1000/file").write_text("x")
        (home / "layers/1000").unlink()
        (home / "layers/1001").unlink()
        (home / "diff/1001").rmdir()
        assert store.cleanup() == 2
        assert {path.name for path in home.glob("*/*")} == {"1"}


def test_what_was_being_made_is_gone_at_the_next_start(ground: Ground) -> None:
    with ground.open() as store:
        store.prepare("key")
        with store._db.write() as tx:
            tx.run("UPDATE snapshots SET ready = 0")
        assert list(store.list()) == []
    with ground.open() as store:
        assert list(store.driver.ids()) == []
        store.prepare("key")
        assert [info.name for info in store.list()] == ["key"]


def test_a_second_server_on_the_same_root_is_refused(ground: Ground, store: Snapshots) -> None:
    store.prepare("key")
    with pytest.raises(StoreError, match="another server"):
        ground.open()
    with ground.served(store):
        command: list[str | Path] = [
            sys.executable, "-m", "lamina", "--run-root", ground.run / "refs", "serve",
            "containerd", "--address", ground.run / "other.sock", "--root", ground.root,
        ]  # fmt: skip
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}, capture_output=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert b"another server keeps its snapshots" in done.stderr


def test_the_socket_of_a_killed_server_is_replaced(ground: Ground) -> None:
    with server(ground), client_of(ground) as client:
        client.prepare("key")
    assert ground.socket.exists()
    with server(ground), client_of(ground) as client:
        assert [info.name for info in client.list()] == ["key"]


def test_a_client_finds_the_server_again(ground: Ground) -> None:
    with client_of(ground) as client:
        with server(ground):
            client.prepare("key")
        with pytest.raises(grpc.RpcError):
            client.channel.unary_unary(f"{SERVICE}/Cleanup")(b"", timeout=5)
        with server(ground):
            assert client.stat("key").name == "key"


def test_another_driver_is_refused(ground: Ground) -> None:
    with ground.open() as store:
        store.prepare("key")
    other = "vfs" if ground.driver != "vfs" else "overlay"
    with pytest.raises(StoreError, match=f"kept by driver {ground.driver}"):
        Snapshots(ground.root, run=ground.run / "refs", driver=other)


def test_a_lost_database_is_told(ground: Ground) -> None:
    with ground.open() as store:
        store.prepare("key")
        for path in ground.root.glob("snapshots.db*"):
            path.rename(path.with_name(f"kept-{path.name}"))
    with pytest.raises(StoreError, match="missing or empty"):
        ground.open()
    for path in ground.root.glob("kept-*"):
        path.rename(path.with_name(path.name.removeprefix("kept-")))


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b"])
def test_a_root_that_mounts_can_not_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="no comma"):
        Snapshots(tmp_path / name, run=tmp_path / "run", driver="vfs")


def test_the_root_of_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lamina.db").touch()
    with pytest.raises(StoreError, match="kept by another"):
        Snapshots(tmp_path, run=tmp_path / "run", driver="vfs")
