from __future__ import annotations

import io
import json

import pytest

from lamina.errors import (
    AmbiguousName,
    DigestMismatch,
    ImageInUse,
    ImageNotFound,
    InvalidName,
    StoreError,
)
from lamina.oci import RunConfig
from lamina.store import Store
from tests.store.conftest import MakeStore, tar


def test_an_imported_image_is_found_by_name_id_and_prefix(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(io.BytesIO(root_fs), "debian:12")
    hex_id = image.id.removeprefix("sha256:")
    for ref in ("debian:12", image.id, hex_id, hex_id[:12], f"sha256:{hex_id[:7]}"):
        assert store.image(ref) == image
    assert image.names == ["debian:12"]
    assert image.size == 200_020
    assert image.diff_ids == [layer.diff_id for layer in image.layers]
    assert image.top is not None
    assert image.chain_id == image.top.chain_id
    for ref in ("debian", "debian:13", "0" * 64, "", "../x", "a\0b"):
        with pytest.raises(ImageNotFound):
            store.image(ref)


def test_a_prefix_of_two_ids_is_ambiguous(store: Store) -> None:
    ids: dict[str, int] = {}
    for number in range(17):
        image = store.import_tar(io.BytesIO(tar({"n": b"%d" % number})))
        digit = image.id.removeprefix("sha256:")[0]
        ids[digit] = ids.get(digit, 0) + 1
    twice = next(digit for digit, count in ids.items() if count > 1)
    with pytest.raises(AmbiguousName):
        store.image(twice)


def test_the_configuration_says_how_to_run(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(
        io.BytesIO(root_fs), config=RunConfig(cmd=["sh"], env=["A=1"], working_dir="/srv")
    )
    document = json.loads(image.config.encode())
    assert document["config"] == {"Cmd": ["sh"], "Env": ["A=1"], "WorkingDir": "/srv"}
    assert document["rootfs"] == {"type": "layers", "diff_ids": image.diff_ids}
    assert document["history"][0]["comment"] == "importing the stream"
    assert document["architecture"]


def test_a_name_moves_and_leaves_a_dangling_image(store: Store, root_fs: bytes) -> None:
    one = store.import_tar(io.BytesIO(root_fs), "x")
    two = store.import_tar(io.BytesIO(tar({"a": b""})), "x")
    assert store.image("x") == two
    assert one.names == []
    one.tag("y:1")
    assert store.image("y:1") == one


def test_a_bad_name_is_refused_before_anything_is_read(store: Store, root_fs: bytes) -> None:
    with pytest.raises(InvalidName):
        store.import_tar(io.BytesIO(root_fs), "Not A Name")
    assert list(store.layers) == []


def test_the_last_name_takes_the_image_along(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(io.BytesIO(root_fs), "x")
    image.tag("y")
    with pytest.raises(ImageInUse, match="several names"):
        store.remove_image(image.id)
    assert store.remove_image("x") == ["x:latest"]
    assert store.remove_image("y") == ["y:latest", image.id]
    assert not list(store.layers)
    assert not list(store.images)
    assert not list(store.driver.ids())
    assert not any((store.root / "blobs/sha256").iterdir())
    with pytest.raises(ImageNotFound):
        image.tag("z")


def test_force_removes_all_names(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(io.BytesIO(root_fs), "x")
    image.tag("y")
    assert store.remove_image(image.id, force=True) == ["x:latest", "y:latest", image.id]


def test_a_shared_layer_stays_with_the_other_image(store: Store, root_fs: bytes) -> None:
    one = store.import_tar(io.BytesIO(root_fs), "x")
    store.import_tar(io.BytesIO(root_fs), "y", config=RunConfig(cmd=["other"]))
    layer = one.layers[0]
    store.remove_image("x")
    assert store.layers.get(layer.id) == layer
    store.remove_image("y")
    assert list(store.layers) == []


def test_an_image_with_a_container_stays(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(io.BytesIO(root_fs), "x")
    box = store.container(image, name="box", keep=True)
    with pytest.raises(ImageInUse, match="box"):
        store.remove_image("x", force=True)
    box.remove()
    store.remove_image("x")


def test_a_changed_configuration_is_not_believed(store: Store, root_fs: bytes) -> None:
    image = store.import_tar(io.BytesIO(root_fs), "x")
    blob = store.root / "blobs" / image.id.replace(":", "/")
    blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(DigestMismatch):
        _ = store.image("x").config
    assert [problem.kind for problem in store.check()] == ["image"]


def test_a_directory_becomes_an_image(store: Store) -> None:
    source = store.root.parent / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc/motd").write_text("hi")
    (source / "manifest.json").write_text("[]")
    image = store.import_directory(source, "dir")
    with store.container(image) as box:
        assert (box.root / "etc/motd").read_text() == "hi"
        assert (box.root / "manifest.json").exists()
    with pytest.raises(InvalidName, match="not a directory"):
        store.import_directory(source / "etc/motd")


@pytest.mark.root
def test_an_image_of_another_driver_says_which(
    open_store: MakeStore, driver: str, root_fs: bytes
) -> None:
    open_store().import_tar(io.BytesIO(root_fs), "x")
    other = open_store(driver="vfs" if driver == "overlay" else "overlay")
    with pytest.raises(StoreError, match=f"--driver {driver}"):
        other.container("x")
    other.import_tar(io.BytesIO(root_fs), "x")
    with other.container("x") as box:
        assert (box.root / "etc/motd").exists()
    assert other.check(contents=True) == []


def test_a_store_remembers_its_driver(open_store: MakeStore, driver: str, root_fs: bytes) -> None:
    open_store().import_tar(io.BytesIO(root_fs), "x")
    assert open_store(driver=None).driver.name == driver
