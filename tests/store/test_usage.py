from __future__ import annotations

import io
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import InvalidName, PermissionRequired, StoreError
from lamina.store import Store
from lamina.types import LayerId
from tests.store.conftest import MakeStore, damage, tar
from tests.support import need_filesystem

SIZE = 200_020


def test_shared_layers_count_once(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(io.BytesIO(root_fs), "one")
    with store.container(image) as box:
        (box.root / "new").write_bytes(bytes(1000))
        box.commit("two")
        (box.root / "more").write_bytes(bytes(500))
        box.snapshot("s")
        (box.root / "again").write_bytes(bytes(70))
        usage = store.usage()
        by_name = {image.names[0]: image for image in usage.images}
        assert (by_name["one:latest"].shared, by_name["one:latest"].unique) == (SIZE, 0)
        assert (by_name["two:latest"].shared, by_name["two:latest"].unique) == (SIZE, 1000)
        assert [image.containers for image in usage.images] == [0, 1]
        (used,) = usage.containers
        assert (used.writable, used.snapshots, used.base) == (70, 1500, SIZE)
        assert usage.layers == SIZE + 1000
        own = (store.driver.overhead(layer.id) for layer in store.layers)
        assert usage.indexes == sum(own)
        assert (usage.indexes > 0) == store.driver.keeps_tars
        assert usage.total == usage.layers + usage.indexes + usage.blobs + 1570


def test_prune_takes_what_nobody_needs(store: Store, root_fs: bytes) -> None:
    store.import_tar(io.BytesIO(root_fs), "x")
    store.import_tar(io.BytesIO(tar({"a": b"123"})), "x")
    kept = store.container("x", name="kept", keep=True)
    pruned = store.prune()
    assert (len(pruned.images), len(pruned.layers), pruned.size) == (1, 1, SIZE)
    assert store.prune().images == []
    with kept.mounted() as root:
        (root / "b").write_text("12345")
        assert store.prune(containers=True, unused=True).containers == []
    pruned = store.prune(containers=True, unused=True)
    assert (pruned.containers, len(pruned.images), pruned.size) == (["kept"], 1, 8)
    assert not list(store.layers)
    assert not list(store.driver.ids())


@pytest.mark.parametrize("ask", [Store.usage, lambda store: store.prune(containers=True)])
def test_a_container_that_goes_while_it_is_measured(
    store: Store, root_fs: bytes, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Store], object]
) -> None:
    box = store.container(store.import_tar(io.BytesIO(root_fs), "one"), keep=True)
    measure = store.driver.diff_size

    def remove_and_measure(*args: Any) -> int:
        box.remove()
        return measure(*args)

    monkeypatch.setattr(store.driver, "diff_size", remove_and_measure)
    ask(store)
    assert list(store.containers) == []


def test_prune_deletes_layers_that_the_tables_do_not_know(store: Store, root_fs: bytes) -> None:
    store.import_tar(io.BytesIO(root_fs), "x")
    store.driver.create(LayerId("lost"))
    store.driver.create(LayerId("child"), LayerId("lost"))
    assert sorted(problem.id for problem in store.check()) == ["child", "lost"]
    assert sorted(store.prune().layers) == ["child", "lost"]
    assert store.check() == []


def test_prune_leaves_alone_what_another_process_makes(
    open_store: MakeStore, root_fs: bytes, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    store, other = open_store(), open_store()
    with store.work() as work:
        store.layers.register(io.BytesIO(root_fs), work=work)
        with other.container(base):
            assert store.prune(containers=True, unused=True).layers == []
    assert list(store.layers) == []


def test_check_finds_and_repairs(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(io.BytesIO(root_fs), "x")
    layer = image.layers[0]
    assert store.check(contents=True) == []
    blob = store.root / "blobs/sha256" / ("0" * 64)
    blob.write_bytes(b"stray")
    (store.root / "tar-split/stray.json.gz").write_bytes(b"")
    assert sorted(problem.kind for problem in store.check()) == ["blob", "tar-split"]
    assert all(problem.repaired for problem in store.check(repair=True))
    assert store.check() == []
    damage(store, layer, "etc/motd")
    assert store.check() == []
    (problem,) = store.check(contents=True)
    assert (problem.kind, problem.id) == ("layer", layer.id)
    if not store.driver.keeps_tars:
        assert "etc/motd" in str(problem)
        (store.root / f"tar-split/{layer.id}.json.gz").unlink()
        assert [problem.kind for problem in store.check()] == ["tar-split"]
    store.driver.remove(layer.id)
    assert "missing" in str(store.check()[0])


@pytest.mark.root
def test_check_finds_an_index_that_changed(tmp_path: Path, root_fs: bytes) -> None:
    need_filesystem("erofs")
    with Store(tmp_path / "root", run=tmp_path / "run", driver="erofs") as store:
        (layer,) = store.import_tar(io.BytesIO(root_fs), "x").layers
        index = Path(store.driver.metadata(layer.id)["Index"])
        index.chmod(0o644)
        index.write_bytes(index.read_bytes() + bytes(512))
        (problem,) = store.check(contents=True)
        assert str(problem) == f"layer {layer.id}: its index is not what it was"


@pytest.mark.root
def test_check_repairs_a_merged_index(tmp_path: Path, root_fs: bytes) -> None:
    need_filesystem("erofs")
    with Store(tmp_path / "root", run=tmp_path / "run", driver="erofs") as store:
        image = store.import_tar(io.BytesIO(root_fs), "x")
        with store.container(image) as box:
            (box.root / "new").write_text("1")
            top = box.commit("y").layers[-1]
        with store.driver.mounted(top.id):
            pass
        chain = Path(store.driver.metadata(top.id)["Index"]).with_name("chain")
        os.truncate(chain, chain.stat().st_size // 2)
        for repair in (False, True):
            (problem,) = store.check(contents=True, repair=repair)
            assert (problem.id, problem.repaired) == (top.id, repair)
        assert store.check(contents=True) == []
        with store.driver.mounted(top.id) as root:
            assert (root / "new").read_text() == "1"


def _fill(store: Store, count: int) -> None:
    """Rows of layers and images, as of a store that has much."""
    store.close()
    connection = sqlite3.connect(store.root / "lamina.db")
    with connection:
        for n in range(count):
            digest = f"sha256:{n:064x}"
            connection.execute(
                "INSERT INTO layers VALUES (?, 'vfs', 'image', ?, ?, ?, 1, 1, 0)",
                (f"{n:064x}", f"{n - 1:064x}" if n % 20 else None, digest, digest),
            )
            connection.execute("INSERT INTO images VALUES (?, 0)", (digest,))
            connection.execute(
                "INSERT INTO image_layers VALUES (?, 'vfs', ?)", (digest, f"{n:064x}")
            )
    connection.close()


def _quickest_opening(open_store: MakeStore) -> float:
    times = []
    for _ in range(40):
        start = time.perf_counter()
        open_store().close()
        times.append(time.perf_counter() - start)
    return min(times)


def test_opening_costs_the_same_with_ten_thousand_layers(
    open_store: MakeStore, root_fs: bytes
) -> None:
    store = open_store(driver="vfs")
    store.import_tar(io.BytesIO(root_fs), "x")
    small = _quickest_opening(open_store)
    _fill(store, 10_000)
    a_walk = 0.01  # the least that looking at each of 10,000 would take
    assert _quickest_opening(open_store) < 3 * small + a_walk / 2
    usage = open_store().usage()
    assert usage.layers == SIZE + 10_000


# -- where a store can't be


def test_a_store_is_private(store: Store) -> None:
    for path in (store.root, store.run):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StoreError, match="can't make the directory"):
        Store(tmp_path / "root", run=tmp_path / "run")


def test_an_unknown_driver_is_said(open_store: MakeStore) -> None:
    with pytest.raises(InvalidName, match="no driver is called 'zfs'"):
        _ = open_store(driver="zfs").driver


@pytest.mark.root
def test_a_read_only_root_is_said(tmpfs_small: Path, tmp_path: Path) -> None:
    from tests import support

    Store(tmpfs_small / "root", run=tmp_path / "run").close()
    support.run("mount", "-o", "remount,ro", tmpfs_small)
    try:
        with pytest.raises((StoreError, PermissionRequired), match="read-only"):
            Store(tmpfs_small / "root", run=tmp_path / "run")
    finally:
        support.run("mount", "-o", "remount,rw", tmpfs_small)


def test_roots_are_chosen_for_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lamina.store import roots

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert roots.default_root() == tmp_path / "data/lamina"
    assert roots.default_run(tmp_path / "data/lamina") == tmp_path / "run/lamina"
    assert roots.default_run(Path("/other")).parent == tmp_path / "run/lamina"
