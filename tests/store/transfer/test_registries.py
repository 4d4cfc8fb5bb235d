"""Images are pulled from and pushed to a real registry, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from lamina.errors import (
    DigestMismatch,
    ImageNotFound,
    InvalidArchive,
    LaminaError,
    RegistryError,
    Unauthorized,
)
from lamina.oci import mediatypes
from lamina.oci.registry import Credentials, Repository
from lamina.store import Packing, Store
from tests.oci.images import index, made_diff_ids, make
from tests.registries import PASSWORD, USER, Registry
from tests.servers import Faulty, Tokens, relay, replying, stall
from tests.store.conftest import MakeStore
from tests.store.transfer.conftest import fetched_whole, options, publish

BIG = os.urandom(3 << 20)
LAYERS = ({"etc/motd": b"one", "etc/gone": b"x"}, {"etc/.wh.gone": b""}, {"srv/big": BIG})


def is_empty(store: Store) -> bool:
    left = [*(store.root / "staging").glob("*/*"), *store.root.glob("blobs/*/*")]
    return not [*store.images, *store.layers, *left] and store.check() == []


def content(store: Store, name: str) -> dict[str, bytes]:
    with store.container(name) as box:
        return {
            str(path.relative_to(box.root)): path.read_bytes()
            for path in sorted(box.root.rglob("*"))
            if path.is_file()
        }


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_pulled_image_runs_and_an_unchanged_one_is_not_fetched_again(
    store: Store, proxy: Faulty, repository_name: str, compression: str
) -> None:
    made = make(*LAYERS, compression=compression)
    publish(proxy.host, repository_name, made, "1")
    name = f"{proxy.host}/{repository_name}:1"
    image = store.pull(name, options=options())
    assert image.names == [name]
    assert image.diff_ids == made_diff_ids(made)
    assert content(store, name) == {"etc/motd": b"one", "srv/big": BIG}
    assert list((store.root / "downloads").iterdir()) == []
    proxy.requests.clear()
    assert store.pull(name, options=options()) == image
    assert len(proxy.requests) <= 3
    assert not proxy.asked("/blobs/")


def test_a_second_pull_through_an_index_and_tokens_takes_three_requests(
    store: Store, plain_registry: Registry, repository_name: str
) -> None:
    with (
        Tokens() as tokens,
        tokens.running(),
        Faulty(plain_registry.host, tokens) as proxy,
        proxy.running(),
    ):
        tokens.users["me"] = "secret"
        who = options(credentials=Credentials("me", "secret"))
        made = index(make(*LAYERS), make({"a": b"arm"}, architecture="arm64"))
        publish(plain_registry.host, repository_name, made, "1")
        name = f"{proxy.host}/{repository_name}:1"
        image = store.pull(name, platform="linux/amd64", options=who)
        before = len(proxy.requests) + len(tokens.requests)
        assert store.pull(name, platform="linux/amd64", options=who) == image
        assert len(proxy.requests) + len(tokens.requests) - before <= 3


def test_layers_that_the_store_has_are_not_fetched(
    store: Store, proxy: Faulty, repository_name: str
) -> None:
    publish(proxy.host, repository_name, make(*LAYERS, compression="gzip"), "base")
    more = make(*LAYERS, {"more": b"m"}, compression="gzip")
    publish(proxy.host, repository_name, more, "more")
    store.pull(f"{proxy.host}/{repository_name}:base", options=options())
    proxy.requests.clear()
    store.pull(f"{proxy.host}/{repository_name}:more", options=options())
    fetched = {request.path.rpartition("/")[2] for request in proxy.asked("GET .*/blobs/")}
    assert fetched == {more.blobs[0][0].digest, more.blobs[-1][0].digest}


def test_a_layer_that_an_image_has_twice_is_fetched_once(
    store: Store, proxy: Faulty, repository_name: str
) -> None:
    same = {"a": b"a"}
    made = make(same, {"b": b"b"}, same, same, compression="gzip")
    publish(proxy.host, repository_name, made, "1")
    name = f"{proxy.host}/{repository_name}:1"
    image = store.pull(name, options=options())
    assert len(image.layers) == 4
    assert len(proxy.asked(f"GET .*{made.blobs[1][0].digest}")) == 1
    store.remove_image(name)
    image = store.pull(name, keep_blobs=True, options=options())
    saved = store.push(name, f"{name}-again", options=options())
    assert saved.manifest.digest == made.top.digest


def test_an_image_pulled_by_digest_has_no_name(
    store: Store, plain_registry: Registry, repository_name: str
) -> None:
    made = make(*LAYERS)
    publish(plain_registry.host, repository_name, made, "1")
    name = f"{plain_registry.host}/{repository_name}@{made.top.digest}"
    assert store.pull(name, options=options()).names == []
    with pytest.raises(ImageNotFound):
        store.pull(f"{plain_registry.host}/{repository_name}:2", options=options())


# -- interrupted ------------------------------------------------------------------------


def test_a_connection_that_is_cut_is_made_again(
    store: Store, proxy: Faulty, repository_name: str
) -> None:
    made = make(*LAYERS)
    publish(proxy.host, repository_name, made, "1")
    proxy.fault(f"GET .*{made.blobs[-1][0].digest}", partial(relay, cut_after=1 << 20), 2)
    store.pull(f"{proxy.host}/{repository_name}:1", options=options())
    assert store.check(contents=True) == []


def test_what_an_interrupted_pull_has_fetched_is_not_fetched_again(
    open_store: MakeStore, proxy: Faulty, repository_name: str
) -> None:
    made = make(*LAYERS)
    publish(proxy.host, repository_name, made, "1")
    name, digest = f"{proxy.host}/{repository_name}:1", made.blobs[-1][0].digest
    proxy.fault(f"GET .*{digest}", partial(relay, cut_after=2 << 20), 1)
    proxy.fault(f"GET .*{digest}", replying(503), 100)
    store = open_store()
    with pytest.raises(RegistryError):
        store.pull(name, options=options())
    assert is_empty(store)
    store.close()
    proxy.faults.clear()
    whole = fetched_whole(store, made)
    proxy.requests.clear()
    again = open_store()
    again.pull(name, options=options())
    blobs = {request.path.rpartition("/")[2]: request for request in proxy.asked("GET .*/blobs/")}
    assert not whole & set(blobs)
    assert blobs[digest].headers["Range"] == f"bytes={2 << 20}-"
    assert again.check(contents=True) == []


_PULL = """
import sys
from lamina.oci.registry import Options
from lamina.store import Store
store = Store(sys.argv[1], run=sys.argv[2], driver=sys.argv[3])
print("up", flush=True)
store.pull(sys.argv[4], options=Options(hosts_directories=(), certificate_directories=()))
"""


@pytest.mark.parametrize("moment", [0.05, 0.2, 0.4])
def test_a_killed_pull_leaves_nothing_but_what_it_has_fetched(
    open_store: MakeStore,
    driver: str,
    tmp_path: Path,
    proxy: Faulty,
    repository_name: str,
    moment: float,
) -> None:
    made = make(*LAYERS, {"last": os.urandom(1 << 20)})
    publish(proxy.host, repository_name, made, "1")
    name = f"{proxy.host}/{repository_name}:1"
    proxy.fault(f"GET .*{made.blobs[-1][0].digest}", stall, 1)
    open_store().close()
    argv = [sys.executable, "-c", _PULL, str(tmp_path / "root"), str(tmp_path / "run"), driver]
    env = os.environ | {"PYTHONPATH": "src"}
    with subprocess.Popen([*argv, name], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
    store = open_store()
    assert is_empty(store)
    proxy.faults.clear()
    whole = fetched_whole(store, made)
    proxy.requests.clear()
    store.pull(name, options=options())
    fetched = {request.path.rpartition("/")[2] for request in proxy.asked("GET .*/blobs/")}
    assert not fetched & whole
    assert content(store, name)["srv/big"] == BIG
    assert store.check(contents=True) == []
    assert [p for p in (store.root / "downloads").iterdir() if p.suffix != ".lock"] == []


def test_a_stalled_server_does_not_hold_up_the_end(
    store: Store, proxy: Faulty, repository_name: str
) -> None:
    """One layer is wrong, another never comes: the error is told, not waited for."""
    made = make(*LAYERS)
    publish(proxy.host, repository_name, made, "1")
    proxy.fault(f"GET .*{made.blobs[-1][0].digest}", stall, 1)
    proxy.fault(f"GET .*{made.blobs[1][0].digest}", partial(relay, change=_flip), 9)
    begun = time.monotonic()
    with pytest.raises((DigestMismatch, InvalidArchive)):
        store.pull(f"{proxy.host}/{repository_name}:1", options=options())
    assert time.monotonic() - begun < 30  # the server would be silent for a minute
    assert is_empty(store)


def _flip(data: bytes) -> bytes:
    return data[:600] + bytes([data[600] ^ 1]) + data[601:]


def test_wrong_bytes_are_not_gone_on_with(
    store: Store, proxy: Faulty, repository_name: str
) -> None:
    made = make(*LAYERS, compression="gzip")
    publish(proxy.host, repository_name, made, "1")
    digest = made.blobs[-1][0].digest
    proxy.fault(f"GET .*{digest}", partial(relay, change=_flip), 1)
    name = f"{proxy.host}/{repository_name}:1"
    with pytest.raises(LaminaError) as caught:
        store.pull(name, options=options())
    assert any(digest in note for note in [str(caught.value), *caught.value.__notes__])
    assert is_empty(store)
    store.pull(name, options=options())
    assert store.check(contents=True) == []


@pytest.mark.parametrize(
    ("status", "error"), [(401, Unauthorized), (403, RegistryError), (404, LaminaError)]
)
def test_a_refusal_names_what_was_refused(
    store: Store, proxy: Faulty, repository_name: str, status: int, error: type[Exception]
) -> None:
    made = make(*LAYERS)
    publish(proxy.host, repository_name, made, "1")
    digest = made.blobs[-1][0].digest
    proxy.fault(f"GET .*{digest}", replying(status), 9)
    with pytest.raises(error, match=digest):
        store.pull(f"{proxy.host}/{repository_name}:1", options=options())
    assert is_empty(store)


# -- pushing ----------------------------------------------------------------------------


def test_a_pushed_image_comes_back(
    store: Store, plain_registry: Registry, repository_name: str
) -> None:
    name = f"{plain_registry.host}/{repository_name}"
    publish(plain_registry.host, repository_name, make(*LAYERS), "1")
    image = store.pull(f"{name}:1", options=options())
    with store.container(image) as box:
        (box.root / "new").write_bytes(b"new")
        committed = box.commit("mine:2")
    saved = store.push("mine:2", f"{name}:2", options=options())
    far = Repository(plain_registry.host, repository_name, options=options())
    try:
        assert far.resolve("2").digest == saved.manifest.digest
    finally:
        far.close()
    store.remove_image("mine:2")
    again = store.pull(f"{name}:2", options=options())
    assert again == committed
    assert content(store, f"{name}:2")["new"] == b"new"


@pytest.mark.parametrize("keep_blobs", [False, True])
def test_blobs_that_the_registry_has_are_not_sent(
    store: Store, proxy: Faulty, repository_name: str, keep_blobs: bool
) -> None:
    """And the manifest stays the same: another's compression need not be done again."""
    made = make(*LAYERS, compression="zstd")
    publish(proxy.host, repository_name, made, "1")
    name = f"{proxy.host}/{repository_name}"
    store.pull(f"{name}:1", keep_blobs=keep_blobs, options=options())
    saved = store.push(f"{name}:1", f"{name}:again", options=options())
    assert saved.manifest.digest == made.top.digest
    assert (saved.sent, saved.changed) == (0, ())
    # In another repository of the registry it is mounted.
    proxy.requests.clear()
    saved = store.push(f"{name}:1", f"{name}/other:1", options=options())
    assert saved.manifest.digest == made.top.digest
    assert saved.sent == 0
    assert len(proxy.asked("POST .*mount=")) == 4  # and the configuration


def test_kept_blobs_go_to_another_registry_unchanged(
    store: Store, plain_registry: Registry, basic_registry: Registry, repository_name: str
) -> None:
    made = make(*LAYERS, compression="zstd")
    publish(plain_registry.host, repository_name, made, "1")
    name = f"{plain_registry.host}/{repository_name}:1"
    who = options(credentials=Credentials(USER, PASSWORD))
    store.pull(name, options=options())
    saved = store.push(name, f"{basic_registry.host}/{repository_name}:1", options=who)
    assert saved.manifest.digest != made.top.digest
    assert list(saved.changed) == made_diff_ids(made)
    store.pull(name, keep_blobs=True, options=options())
    saved = store.push(name, f"{basic_registry.host}/{repository_name}:2", options=who)
    assert saved.manifest.digest == made.top.digest
    with pytest.raises(Unauthorized):
        store.push(name, f"{basic_registry.host}/{repository_name}:3", options=options())


def test_zstd_is_pushed_when_asked(
    store: Store, plain_registry: Registry, repository_name: str
) -> None:
    name = f"{plain_registry.host}/{repository_name}"
    publish(plain_registry.host, repository_name, make(*LAYERS, compression="gzip"), "1")
    store.pull(f"{name}:1", options=options())
    store.push(f"{name}:1", f"{name}:zstd", packing=Packing("zstd"), options=options())
    far = Repository(plain_registry.host, repository_name, options=options())
    try:
        from lamina.oci.content import read_document
        from lamina.oci.manifest import Manifest

        manifest = Manifest.decode(read_document(far, far.resolve("zstd")))
    finally:
        far.close()
    types = {layer.media_type for layer in manifest.layers}
    assert types == {mediatypes.layer_type("zstd")}


def test_a_push_that_fails_says_so_and_can_be_repeated(
    store: Store, proxy: Faulty, repository_name: str
) -> None:
    name = f"{proxy.host}/{repository_name}"
    publish(proxy.host, repository_name, make(*LAYERS), "1")
    store.pull(f"{name}:1", options=options())
    proxy.fault("POST .*/blobs/uploads", replying(500), 100)
    with pytest.raises(RegistryError, match="500"):
        store.push(f"{name}:1", f"{name}/new:1", packing=Packing("gzip", 9), options=options())
    proxy.faults.clear()
    store.push(f"{name}:1", f"{name}/new:1", packing=Packing("gzip", 9), options=options())
    assert store.pull(f"{name}/new:1", options=options()) == store.image(f"{name}:1")
