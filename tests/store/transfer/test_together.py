"""Several who transfer the same blobs at once, and layers that wait for those below them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from lamina.errors import DigestMismatch, InvalidArchive
from lamina.store import Store
from tests.oci.images import make
from tests.registries import Registry
from tests.servers import Faulty, Handler, relay
from tests.store.conftest import MakeStore
from tests.store.transfer.conftest import fetched_whole, options, publish

LAYERS = ({"etc/motd": b"one", "etc/gone": b"x"}, {"etc/.wh.gone": b""}, {"srv/a": b"a" * 5000})


def at_once(stores: list[Store], work: Callable[[Store], object]) -> None:
    """Do some work in all stores, begun at the same moment; all of it has to end."""
    gate = threading.Barrier(len(stores))

    def run(store: Store) -> None:
        gate.wait(60)
        work(store)

    threads = [threading.Thread(target=run, args=(store,), daemon=True) for store in stores]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("keep_blobs", [False, True])
def test_three_who_pull_the_same_fetch_it_once(
    open_store: MakeStore, proxy: Faulty, repository_name: str, keep_blobs: bool
) -> None:
    made = make(*LAYERS, compression="gzip")
    publish(proxy.host, repository_name, made, "1")
    name = f"{proxy.host}/{repository_name}:1"
    stores = [open_store() for _ in range(3)]
    at_once(stores, lambda store: store.pull(name, keep_blobs=keep_blobs, options=options()))
    layers = [layer.digest for layer, _ in made.blobs[1:]]
    assert [len(proxy.asked(f"GET .*{digest}")) for digest in layers] == [1, 1, 1]
    assert len(list(stores[0].layers)) == 3


def test_the_same_layers_in_another_order_are_not_waited_for_for_ever(
    open_store: MakeStore, proxy: Faulty, repository_name: str
) -> None:
    """More than are fetched at once: each has the blobs that the other comes to last."""
    layers = [{f"file{number}": os.urandom(1000)} for number in range(9)]
    publish(proxy.host, repository_name, make(*layers), "up")
    publish(proxy.host, repository_name, make(*reversed(layers)), "down")

    def slowly(handler: Handler) -> None:
        time.sleep(0.2)
        relay(handler)

    proxy.fault("GET .*/blobs/", slowly, 100)
    up, down = open_store(), open_store()
    tags = {up: "up", down: "down"}
    at_once(
        [up, down],
        lambda store: store.pull(
            f"{proxy.host}/{repository_name}:{tags[store]}", options=options()
        ),
    )
    assert len(list(up.layers)) == 18
    assert list((up.root / "downloads").iterdir()) == []
    assert up.check(contents=True) == []


def test_a_layer_on_a_bad_one_is_not_called_bad(
    store: Store, proxy: Faulty, repository_name: str
) -> None:
    """It has to know what is below it; that it does not get to is no reason to fetch it again."""
    made = make(
        {"d/a": os.urandom(2 << 20)},
        {"d/.wh..wh..opq": b"", "d/b": b"b"},
        {"d/.wh.b": b"", "d/c": b"c"},
        compression="gzip",
    )
    publish(proxy.host, repository_name, made, "1")
    name, bad = f"{proxy.host}/{repository_name}:1", made.blobs[1][0].digest

    def flip(data: bytes) -> bytes:
        return data[: 1 << 20] + bytes([data[1 << 20] ^ 1]) + data[(1 << 20) + 1 :]

    def damage(handler: Handler) -> None:
        time.sleep(1)  # the others have come
        relay(handler, change=flip)

    proxy.fault(f"GET .*{bad}", damage, 1)
    with pytest.raises((DigestMismatch, InvalidArchive)) as caught:
        store.pull(name, options=options())
    assert [note for note in caught.value.__notes__ if bad in note] == caught.value.__notes__
    assert fetched_whole(store, made) == {layer.digest for layer, _ in made.blobs[2:]}
    proxy.requests.clear()
    store.pull(name, options=options())
    assert len(proxy.asked("GET .*/blobs/")) == 2  # that layer, and the configuration


_WORK = """
import random, sys, time
from lamina.errors import ImageInUse, ImageNotFound
from lamina.oci.registry import Options
from lamina.store import Store

root, run, driver, name, kind, seed = sys.argv[1:]
options = Options(hosts_directories=(), certificate_directories=())
choose, end = random.Random(seed), time.monotonic() + 3
with Store(root, run=run, driver=driver) as store:
    while time.monotonic() < end:
        if kind == "pull":
            keep = choose.random() < 0.4
            store.pull(f"{name}:{choose.randrange(3)}", keep_blobs=keep, options=options)
        elif kind == "prune":
            store.prune(unused=choose.random() < 0.5)
        for image in list(store.images) if kind == "remove" else ():
            try:
                store.remove_image(image.id, force=True)
            except (ImageNotFound, ImageInUse):
                pass
        time.sleep(choose.random() * 0.05)
"""


def test_images_that_share_layers_come_and_go_at_once(
    open_store: MakeStore,
    driver: str,
    plain_registry: Registry,
    repository_name: str,
    tmp_path: Path,
) -> None:
    """Processes that pull, remove and prune: none fails, and nothing is left or damaged."""
    base = [{f"base{number}": os.urandom(3000)} for number in range(3)]
    for number in range(3):
        top = {f"top{number}": os.urandom(100_000)}
        made = make(*base[: number % 2 + 2], top, compression="gzip")
        publish(plain_registry.host, repository_name, made, str(number))
    store, name = open_store(), f"{plain_registry.host}/{repository_name}"
    argv = [
        sys.executable,
        "-c",
        _WORK,
        str(tmp_path / "root"),
        str(tmp_path / "run"),
        driver,
        name,
    ]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen([*argv, kind, str(seed)], env=os.environ | {"PYTHONPATH": "src"})
            )
            for seed, kind in enumerate(("pull", "pull", "remove", "prune"))
        ]
        assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    assert store.check(contents=True) == []
    for image in list(store.images):
        store.remove_image(image.id, force=True)
    store.prune(unused=True)
    left = [*store.layers, *store.root.glob("blobs/*/*"), *store.root.glob("staging/*/*")]
    assert [*left, *store.check()] == []
