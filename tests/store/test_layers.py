from __future__ import annotations

import gzip
import hashlib
import io
import os
import threading
from pathlib import Path

import pytest

from lamina.errors import DigestMismatch, InvalidArchive, LayerBroken, LayerInUse, LayerNotFound
from lamina.oci import chain_ids
from lamina.progress import Progress
from lamina.store import Store
from lamina.types import DiffId
from tests.store import children
from tests.store.conftest import MakeStore, damage, tar


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _left(store: Store) -> list[str]:
    """What is in the store besides the database and empty directories."""
    return [
        str(path.relative_to(store.root))
        for place in ("tar-split", "blobs", f"{store.driver.name}/layers")
        for path in (store.root / place).rglob("*")
        if not path.is_dir()
    ]


def test_a_layer_has_the_digest_of_its_tar(store: Store, root_fs: bytes) -> None:
    with store.work() as work:
        layer = store.layers.register(io.BytesIO(gzip.compress(root_fs)), work=work)
        assert (layer.diff_id, layer.chain_id) == (_digest(root_fs), _digest(root_fs))
        assert layer.tar_size == len(root_fs)
        assert layer.size == 6 + 8 + 6 + 200_000
        above = store.layers.register(io.BytesIO(tar({"new": b"1"})), layer, work=work)
        assert above.diff_id is not None
        assert above.chain_id == chain_ids([DiffId(_digest(root_fs)), above.diff_id])[1]
        assert [entry.id for entry in store.layers.chain(above.id)] == [layer.id, above.id]
        assert store.layers.find(above.chain_id) == above
        assert store.layers.with_diff_id(above.diff_id) == [above]


def test_the_tar_comes_out_as_it_went_in(store: Store, root_fs: bytes) -> None:
    odd = root_fs + b"trailing" + bytes(3000)
    with store.work() as work:
        layer = store.layers.register(io.BytesIO(odd), work=work)
        with store.layers.tar(layer) as stream:
            assert stream.read() == odd


def test_names_that_come_twice_come_out_twice(store: Store) -> None:
    first, second = tar({"a": b"first\n"}), tar({"a": b"second\n"})
    data = first[:1024] + second
    with store.work() as work:
        layer = store.layers.register(io.BytesIO(data), work=work)
        with store.layers.tar(layer) as stream:
            assert stream.read() == data


def test_a_changed_file_is_noticed_when_the_tar_is_read(store: Store, root_fs: bytes) -> None:
    with store.work() as work:
        layer = store.layers.register(io.BytesIO(root_fs), work=work)
        damage(store, layer, "etc/motd")
        with (
            pytest.raises((DigestMismatch, LayerBroken)),
            store.layers.tar(layer) as stream,
        ):
            stream.read()


def test_the_same_layer_twice_is_stored_once(store: Store, root_fs: bytes) -> None:
    one = store.import_tar(io.BytesIO(root_fs), "one")
    two = store.import_tar(io.BytesIO(gzip.compress(root_fs)), "two")
    assert one.layers == two.layers
    assert len(list(store.driver.ids())) == 1
    assert len(list((store.root / "tar-split").iterdir())) == (not store.driver.keeps_tars)


def test_the_same_layer_by_two_processes_at_once_is_stored_once(
    store: Store, driver: str, root_fs: bytes, tmp_path: Path
) -> None:
    source = tmp_path / "root.tar"
    source.write_bytes(root_fs)
    code = """
        import os, sys
        from lamina.store import Store
        with Store(sys.argv[1], run=sys.argv[2], driver=sys.argv[3]) as store:
            os.read(0, 1)
            for n in range(5):
                store.import_tar(sys.argv[4], f"image-{sys.argv[5]}-{n}")
    """
    ready, wait = os.pipe()
    running = [
        children.start(code, store.root, store.run, driver, source, n, stdin=ready)
        for n in range(3)
    ]
    os.write(wait, b"x" * 3)
    assert [child.wait() for child in running] == [0, 0, 0]
    os.close(ready)
    os.close(wait)
    assert len({image.layers[0].id for image in store.images}) == 1
    assert len(list(store.driver.ids())) == 1
    assert store.check() == []


def test_threads_import_side_by_side(store: Store) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for n in range(4):
                data = tar({f"f{number % 4}-{n}": b"x" * 1000})
                store.import_tar(io.BytesIO(data), f"image{number}:{n}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(list(store.layers)) == 16
    assert store.check(contents=True) == []


@pytest.mark.parametrize("keep", [100, 700, 5000])
def test_a_truncated_tar_leaves_nothing(store: Store, root_fs: bytes, keep: int) -> None:
    with pytest.raises(InvalidArchive):
        store.import_tar(io.BytesIO(root_fs[:keep]), "broken")
    assert _left(store) == []
    assert list(store.layers) == []
    assert list(store.images) == []
    assert store.check() == []


def test_work_that_fails_takes_its_layers_along(store: Store, root_fs: bytes) -> None:
    with pytest.raises(KeyError), store.work() as work:
        layer = store.layers.register(io.BytesIO(root_fs), work=work)
        store.layers.register(io.BytesIO(tar({"a": b""})), layer, work=work)
        raise KeyError
    assert _left(store) == []
    assert list(store.layers) == []


def test_a_wrong_diff_id_is_refused(store: Store, root_fs: bytes) -> None:
    wrong = DiffId("sha256:" + "0" * 64)
    with pytest.raises(DigestMismatch), store.work() as work:
        store.layers.register(io.BytesIO(root_fs), work=work, diff_id=wrong)
    assert _left(store) == []


def test_a_known_diff_id_is_not_read_again(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(io.BytesIO(root_fs), "x")
    with store.work() as work:
        layer = store.layers.register(
            io.BytesIO(b"never read"), work=work, diff_id=image.diff_ids[0]
        )
        assert layer == image.top


def test_the_tar_of_an_image_is_not_a_root_file_system(store: Store) -> None:
    with pytest.raises(InvalidArchive, match="lamina load"):
        store.import_tar(io.BytesIO(tar({"blobs": None, "oci-layout": b"{}"})))
    with pytest.raises(InvalidArchive, match="lamina load"):
        store.import_tar(io.BytesIO(tar({"abc.json": b"{}", "manifest.json": b"[]"})))
    store.import_tar(io.BytesIO(tar({"./etc/x": b"", "manifest.json": b"[]"})))


def test_a_layer_in_use_stays(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(io.BytesIO(root_fs), "x")
    layer = image.layers[0]
    with pytest.raises(LayerInUse, match=image.id):
        store.layers.remove(layer.id)
    with store.work() as work:
        above = store.layers.register(io.BytesIO(tar({"a": b""})), layer, work=work)
        with pytest.raises(LayerInUse, match="at work"):
            store.layers.remove(above.id)
        store.remove_image("x")
        with pytest.raises(LayerInUse, match="stands on it"):
            store.layers.remove(layer.id)
    with pytest.raises(LayerNotFound):
        store.layers.remove(above.id)
    assert list(store.layers) == []


def test_progress_is_told(open_store: MakeStore, root_fs: bytes, tmp_path: Path) -> None:
    told: list[Progress] = []
    source = tmp_path / "root.tar.gz"
    source.write_bytes(gzip.compress(root_fs))
    open_store(progress=told.append).import_tar(source)
    assert told
    assert {report.what for report in told} == {"importing root.tar.gz"}
    assert {report.total for report in told} == {source.stat().st_size}
    assert [report.done for report in told] == sorted(report.done for report in told)
    assert told[-1].unit == "bytes"


@pytest.mark.root
def test_a_full_disk_is_said_and_leaves_nothing(tmpfs_small: Path, driver: str) -> None:
    with Store(tmpfs_small / "root", run=tmpfs_small / "run", driver="vfs") as store:
        kept = store.import_tar(io.BytesIO(tar({"etc/x": b"small"})), "kept")
        with pytest.raises(OSError, match="No space left"):
            store.import_tar(io.BytesIO(tar({"big": os.urandom(8 << 20)})), "big")
        assert [image.id for image in store.images] == [kept.id]
        assert store.check(contents=True) == []
        assert len(list(store.driver.ids())) == 1
