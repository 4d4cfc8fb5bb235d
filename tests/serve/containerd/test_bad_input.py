"""What is wrong with a request is told by its status; the store stays as it was, the server up."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from lamina.errors import InvalidSnapshotRequest
from lamina.serve.containerd.api import diff_pb2, health_pb2
from lamina.serve.containerd.api import snapshots_pb2 as api
from lamina.store.snapshots import Snapshots
from tests.serve.containerd.client import SERVICE, Client
from tests.serve.containerd.conftest import Ground

HEALTH = "/grpc.health.v1.Health"
pytestmark = pytest.mark.root


@pytest.fixture
def driver_name() -> str:
    return "overlay"


@pytest.fixture
def client(ground: Ground, store: Snapshots) -> Iterator[Client]:
    with ground.served(store) as client:
        yield client
        status = health_pb2.HealthCheckResponse
        answer = client.raw(f"{HEALTH}/Check", b"")
        assert status.FromString(answer).status == status.SERVING, "the server is not up any more"


def code(client: Client, method: str, data: bytes) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        client.raw(method, data)
    assert isinstance(caught.value, grpc.Call)
    found: grpc.StatusCode = caught.value.code()
    return found


@pytest.mark.parametrize(
    "method", [f"{SERVICE}/Rename", "/containerd.services.content.v1.Content/Info", "/", "/x/y"]
)
def test_methods_that_are_not_there(client: Client, method: str) -> None:
    assert code(client, method, b"") is grpc.StatusCode.UNIMPLEMENTED


METHODS = ["Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage"]


@pytest.mark.parametrize("method", [*METHODS, "Cleanup"])
@pytest.mark.parametrize("data", [b"\xff\xff", b"\x12\x7f", b"\x12\x02\xff\xfe"])
def test_bytes_that_are_no_message(client: Client, method: str, data: bytes) -> None:
    if method == "Cleanup" and data[0] == 0x12:
        pytest.skip("field 2 is unknown there, and skipped")
    assert code(client, f"{SERVICE}/{method}", data) is grpc.StatusCode.INVALID_ARGUMENT
    assert list(client.list()) == []


@pytest.mark.parametrize("method", ["Prepare", "View", "Commit"])
def test_an_empty_message(client: Client, method: str) -> None:
    assert code(client, f"{SERVICE}/{method}", b"") is grpc.StatusCode.INVALID_ARGUMENT


def test_a_request_that_is_too_large(client: Client) -> None:
    labels = {f"{number}": "x" * 4000 for number in range(2000)}
    data = api.PrepareSnapshotRequest(key="key", labels=labels).SerializeToString()
    assert code(client, f"{SERVICE}/Prepare", data) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert list(client.list()) == []


def test_a_key_that_is_too_long(client: Client) -> None:
    with pytest.raises(InvalidSnapshotRequest, match="32768"):
        client.prepare("k" * 40_000)


def test_what_is_no_http_at_all(client: Client, ground: Ground) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(10_000), b""):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(ground.socket))
            raw.sendall(data)
    client.prepare("key")


def test_a_client_that_goes_away_while_it_is_served(
    client: Client, ground: Ground, store: Snapshots
) -> None:
    for number in range(50):
        other = Client(ground.socket)
        request = api.PrepareSnapshotRequest(key=f"key {number}").SerializeToString()
        other.channel.unary_unary(f"{SERVICE}/Prepare").future(request)
        time.sleep(0.001 * (number % 5))
        other.close()
    deadline = time.monotonic() + 10
    while {i.name for i in client.list()} != {i.name for i in store.list()}:
        assert time.monotonic() < deadline
    for info in list(client.list()):
        client.mounts(info.name)
        client.remove(info.name)
    client.cleanup()
    assert list(store.driver.ids()) == []


def test_a_list_that_nobody_reads_to_its_end(client: Client) -> None:
    for number in range(300):
        client.prepare(f"key {number}")
    for _ in range(40):  # more than the server has threads
        infos = client.list()
        next(infos)
        infos.close()  # type: ignore[attr-defined]
    assert len(list(client.list())) == 300


def test_lists_that_nobody_reads_do_not_take_all_threads(
    client: Client, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.serve.containerd.snapshots._PATIENCE", 0.2)
    labels = {str(number): "x" * 4000 for number in range(200)}
    for number in range(20):
        client.prepare(str(number), "", labels)
    with ExitStack() as stack:
        calls = []
        for _ in range(40):  # more than the server has threads
            channel = stack.enter_context(grpc.insecure_channel(f"unix:{ground.socket}"))
            call = channel.unary_stream(f"{SERVICE}/List", None, None)(b"", wait_for_ready=True)
            stack.callback(call.cancel)
            calls.append(call)
        assert client.stat("1").labels == labels
        codes = {call.code() for call in calls[16:]}  # waits until they ended
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(list(client.list())) == 20


def test_watchers_of_the_health_do_not_take_all_threads(client: Client) -> None:
    watch = client.channel.unary_stream(f"{HEALTH}/Watch", None, None)
    calls = [watch(b"", wait_for_ready=True)]
    first = health_pb2.HealthCheckResponse.FromString(next(calls[0]))
    calls += [watch(b"") for _ in range(39)]
    assert first.status == health_pb2.HealthCheckResponse.SERVING
    client.prepare("key")
    for call in calls:
        call.cancel()


def test_a_service_that_is_not_there_has_no_health(client: Client) -> None:
    for service, there in ((b"grpc.health.v2.Health", False), (SERVICE[1:].encode(), True)):
        request = health_pb2.HealthCheckRequest(service=service.decode()).SerializeToString()
        if there:
            client.raw(f"{HEALTH}/Check", request)
        else:
            assert code(client, f"{HEALTH}/Check", request) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("digest", ["", "sha256:../../etc/passwd", "sha256:" + "Z" * 64, "md5:00"])
def test_a_blob_whose_digest_is_none(client: Client, digest: str) -> None:
    request = diff_pb2.ApplyRequest()
    request.diff.digest = digest
    request.diff.media_type = "application/vnd.oci.image.layer.v1.tar"
    method = "/containerd.services.diff.v1.Diff/Apply"
    found = code(client, method, request.SerializeToString())
    assert found is grpc.StatusCode.INVALID_ARGUMENT


def test_10000_keys(client: Client, store: Snapshots) -> None:
    client.prepare("making")
    client.commit("base", "making")
    for number in range(10_000):
        client.view(f"default/{number}/view of something {number}", "base")
    assert sum(1 for _ in client.list()) == 10_001
    assert [i.name for i in client.list(['name~="something 9999$"'])] == [
        "default/9999/view of something 9999"
    ]
    begun = time.monotonic()
    client.stat("default/5000/view of something 5000")
    assert time.monotonic() - begun < 1
    assert list(store.driver.ids()) == ["1"]


@pytest.mark.allow_log("call failed")
def test_a_disk_that_is_full(tmpfs_small: Path, ground: Ground) -> None:
    ground.root = tmpfs_small / "root"
    try:
        with ground.open() as store, ground.served(store) as client:
            client.prepare("making")
            client.commit("base", "making")
            made = []
            with pytest.raises(grpc.RpcError) as caught:
                for number in range(1000):
                    client.prepare(f"key {number}", "base", {"label": "x" * 4000})
                    made.append(f"key {number}")
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert made
            assert {info.name for info in client.list()} == {"base", *made}
            for key in made[:20]:
                client.remove(key)
            client.prepare("again", "base")
    finally:
        ground.end()
        ground.root = tmpfs_small.parent / "elsewhere"


# -- many at once


def test_64_clients_make_progress_together(ground: Ground, store: Snapshots) -> None:
    rounds, failed = 8, []

    def work(number: int) -> None:
        client = Client(ground.socket)
        try:
            for turn in range(rounds):
                key, name = f"{number}/{turn}", f"{number}/{turn} committed"
                client.prepare(key, "base", {"by": str(number)})
                client.mounts(key)
                client.usage(key)
                client.commit(name, key)
                client.view(f"{key} view", name)
                client.prepare(f"{key} box", name)
                client.cleanup()
                for each in (f"{key} view", f"{key} box", name):
                    client.remove(each)
        except BaseException as error:
            failed.append(error)
        finally:
            client.close()

    with ground.served(store) as client:
        client.prepare("making")
        client.commit("base", "making")
        threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert [info.name for info in client.list()] == ["base"]
        client.cleanup()
        assert list(store.driver.ids()) == ["1"]


def test_of_many_who_want_one_key_one_gets_it(ground: Ground, store: Snapshots) -> None:
    got: list[str] = []

    def work() -> None:
        client = Client(ground.socket)
        try:
            client.prepare("key")
            got.append("key")
        except Exception as error:
            got.append(type(error).__name__)
        finally:
            client.close()

    with ground.served(store) as client:
        for _ in range(5):
            got.clear()
            threads = [threading.Thread(target=work) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(got) == ["SnapshotExists"] * 15 + ["key"]
            client.remove("key")
        client.cleanup()
        assert list(store.driver.ids()) == []
