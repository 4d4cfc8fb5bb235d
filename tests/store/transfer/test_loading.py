"""Images come in from layouts: whole or not at all, each layer once."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import lamina.archive.erofs
from lamina.errors import (
    BlobNotFound,
    DigestMismatch,
    ImageNotFound,
    InvalidArchive,
    InvalidImage,
    LaminaError,
    PlatformNotFound,
)
from lamina.oci import ImageConfig, mediatypes
from lamina.oci.descriptor import Descriptor, described
from lamina.oci.layout import LayoutDirectory
from lamina.oci.manifest import Manifest
from lamina.store import Store
from lamina.store.core import Core
from lamina.types import Digest
from tests.oci.images import Made, index, made_diff_ids, make, put, tar
from tests.store.conftest import MakeStore
from tests.support import need_filesystem

LAYERS = ({"etc/motd": b"one", "etc/gone": b"x"}, {"etc/.wh.gone": b""}, {"srv/a": b"a" * 5000})


class Counting(LayoutDirectory):
    """A layout that tells which blobs were read."""

    opened: list[str]

    def open(self, descriptor: Descriptor, offset: int = 0) -> BinaryIO:
        self.__dict__.setdefault("opened", []).append(descriptor.digest)
        return super().open(descriptor, offset)


@pytest.fixture
def layout(tmp_path: Path) -> LayoutDirectory:
    return LayoutDirectory.create(tmp_path / "layout")


def files(store: Store, name: str) -> dict[str, bytes]:
    with store.container(name) as box:
        return {
            str(path.relative_to(box.root)): path.read_bytes()
            for path in sorted(box.root.rglob("*"))
            if path.is_file()
        }


def is_empty(store: Store) -> bool:
    left = [*(store.root / "staging").glob("*/*"), *store.root.glob("blobs/*/*")]
    return not [*store.images, *store.layers, *left] and store.check() == []


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_an_image_comes_with_its_layers_and_names(
    store: Store, layout: LayoutDirectory, compression: str
) -> None:
    made = make(*LAYERS, compression=compression)
    put(layout, made, "docker.io/library/box:1", "example.com/box:2")
    with closing(layout):
        (image,) = store.load(layout)
    assert sorted(image.names) == ["box:1", "example.com/box:2"]
    assert image.diff_ids == made_diff_ids(made)
    assert image.id == made.blobs[0][0].digest
    assert files(store, "box:1") == {"etc/motd": b"one", "srv/a": b"a" * 5000}
    assert store.check(contents=True) == []


def test_many_layers_are_stacked_in_their_order(store: Store, layout: LayoutDirectory) -> None:
    layers = [{f"file{number % 7}": str(number).encode() * 100} for number in range(60)]
    put(layout, make(*layers, compression="gzip"), "docker.io/library/deep:latest")
    with closing(layout):
        store.load(layout)
    expected = {name: content for layer in layers for name, content in layer.items()}
    assert files(store, "deep") == expected


def test_what_the_store_has_is_not_read_again(store: Store, tmp_path: Path) -> None:
    base = make(*LAYERS[:2])
    more = make(*LAYERS)
    with closing(LayoutDirectory.create(tmp_path / "one")) as layout:
        put(layout, base, "docker.io/library/base:latest")
        store.load(layout)
    with closing(Counting.create(tmp_path / "two")) as second:
        put(second, more, "docker.io/library/more:latest")
        store.load(second)
        assert not {layer.digest for layer, _ in more.blobs[1:3]} & {*second.opened}
        second.opened.clear()
        (again,) = store.load(second)
        assert second.opened == []
    assert again.names == ["more:latest"]
    assert len(list(store.layers)) == 3


def test_an_image_without_a_name_is_dangling(store: Store, layout: LayoutDirectory) -> None:
    put(layout, make(*LAYERS))
    layout.close()
    with closing(LayoutDirectory(layout.description)) as source:
        (image,) = store.load(source)
    assert image.names == []


def test_it_gets_another_name_when_asked(store: Store, layout: LayoutDirectory) -> None:
    put(layout, make(*LAYERS), "docker.io/library/box:1")
    with closing(layout):
        (image,) = store.load(layout, name="mine")
        assert image.names == ["mine:latest"]
        with pytest.raises(ImageNotFound, match="box:1"):
            store.load(layout, ["other"])
        put(layout, make({"x": b"y"}), "docker.io/library/x:1")
        with pytest.raises(InvalidImage, match="2 images"):
            store.load(layout, name="mine")
        (image,) = store.load(layout, ["x:1"], name="mine")
        assert sorted(image.names) == ["mine:latest"]


def test_the_image_for_the_platform_is_taken(store: Store, layout: LayoutDirectory) -> None:
    amd, arm = make({"a": b"amd"}), make({"a": b"arm"}, architecture="arm64")
    put(layout, index(amd, arm), "docker.io/library/multi:latest")
    with closing(layout):
        store.load(layout, platform="linux/arm64")
        assert files(store, "multi") == {"a": b"arm"}
        store.load(layout, platform="linux/amd64")
        assert files(store, "multi") == {"a": b"amd"}
        with pytest.raises(PlatformNotFound, match="linux/amd64, linux/arm64"):
            store.load(layout, platform="linux/s390x")


def test_an_image_alone_is_for_the_platform_that_is_asked_for(
    store: Store, layout: LayoutDirectory
) -> None:
    put(layout, make({"a": b"arm"}, architecture="arm64"), "docker.io/library/arm:latest")
    with closing(layout):
        with pytest.raises(PlatformNotFound, match="there are: linux/arm64"):
            store.load(layout, platform="linux/amd64")
        assert is_empty(store)
        store.load(layout)
        assert store.image("arm").config.architecture == "arm64", "nobody asked"
        with pytest.raises(PlatformNotFound, match="there are: linux/arm64"):
            store.load(layout, platform="linux/amd64")
        store.load(layout, platform="linux/arm64")


# -- what bad input gets ----------------------------------------------------------------


def remade(made: Made, change: Callable[[Manifest], object]) -> Made:
    """The image with a manifest that says something else."""
    manifest = Manifest.decode(made.data)
    change(manifest)
    data = manifest.encode()
    return Made(described(data, mediatypes.OCI_MANIFEST), data, made.blobs)


def configured(made: Made, change: Callable[[ImageConfig], object]) -> Made:
    """The image with another configuration."""
    config = ImageConfig.decode(made.blobs[0][1])
    change(config)
    blob = described(config.encode(), mediatypes.OCI_CONFIG), config.encode()

    def point(manifest: Manifest) -> None:
        manifest.config = blob[0]

    image = remade(made, point)
    image.blobs = [blob, *made.blobs[1:]]
    return image


def with_layer(made: Made, data: bytes, compression: str = "gzip") -> Made:
    """The image with other bytes as its top layer."""
    blob = described(data, mediatypes.layer_type(compression)), data

    def point(manifest: Manifest) -> None:
        manifest.layers[-1] = blob[0]

    image = remade(made, point)
    image.blobs = [*made.blobs[:-1], blob]
    return image


GZIPPED = make(*LAYERS, compression="gzip")
TOP = GZIPPED.blobs[-1][1]


def set_type(manifest: Manifest) -> None:
    manifest.layers[-1].media_type = mediatypes.layer_type("zstd")


def set_odd_type(manifest: Manifest) -> None:
    manifest.layers[-1].media_type = "application/wasm"


def set_artifact(manifest: Manifest) -> None:
    manifest.config.media_type = mediatypes.OCI_EMPTY


BAD: dict[str, tuple[Made, type[LaminaError], str]] = {
    "a DiffID too few": (
        configured(GZIPPED, lambda config: config.rootfs.diff_ids.pop()),
        InvalidImage,
        "3 layers .* 2 DiffIDs",
    ),
    "another DiffID": (
        configured(GZIPPED, lambda config: config.rootfs.diff_ids.reverse()),
        DigestMismatch,
        "tar in blob",
    ),
    "a DiffID that is none": (
        configured(
            GZIPPED,
            lambda config: config.rootfs.diff_ids.__setitem__(0, Digest("../../x")),  # type: ignore[call-overload]
        ),
        InvalidImage,
        "not a sha256",
    ),
    "another compression": (remade(GZIPPED, set_type), InvalidImage, r"compression is gzip"),
    "no layer": (remade(GZIPPED, set_odd_type), InvalidImage, "application/wasm"),
    "an artifact": (remade(GZIPPED, set_artifact), InvalidImage, "artifact"),
    "cut short": (with_layer(GZIPPED, TOP[:-20]), InvalidArchive, "truncated"),
    "goes on": (with_layer(GZIPPED, TOP + b"garbage" * 100), InvalidArchive, "goes on after"),
    "no tar": (with_layer(GZIPPED, b"\0" * 511, "none"), LaminaError, "."),
    "not even gzip": (with_layer(GZIPPED, b"hello" * 300), InvalidImage, "compression is none"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_leaves_the_store_as_it_was(
    store: Store, layout: LayoutDirectory, case: str
) -> None:
    made, error, why = BAD[case]
    put(layout, made, "docker.io/library/bad:latest")
    with closing(layout), pytest.raises(error, match=why):
        store.load(layout)
    assert is_empty(store)


def test_a_blob_that_is_missing_is_named(store: Store, layout: LayoutDirectory) -> None:
    put(layout, GZIPPED, "docker.io/library/bad:latest")
    digest = GZIPPED.blobs[2][0].digest
    os.unlink(Path(layout.description, "blobs/sha256", digest.removeprefix("sha256:")))
    with closing(layout), pytest.raises(BlobNotFound, match=digest):
        store.load(layout)
    assert is_empty(store)


def test_a_blob_that_changed_is_named(store: Store, layout: LayoutDirectory) -> None:
    put(layout, GZIPPED, "docker.io/library/bad:latest")
    digest = GZIPPED.blobs[2][0].digest
    path = Path(layout.description, "blobs/sha256", digest.removeprefix("sha256:"))
    other = make({"etc/.wh.other": b""}, compression="gzip").blobs[1][1]
    path.write_bytes(other.ljust(path.stat().st_size, b"\0")[: path.stat().st_size])
    with closing(layout), pytest.raises((DigestMismatch, InvalidArchive)):
        store.load(layout)
    assert is_empty(store)


def test_a_hostile_layer_is_refused(store: Store, layout: LayoutDirectory) -> None:
    put(layout, make({"ok": b"1"}, {"../out": b"x"}), "docker.io/library/bad:latest")
    with closing(layout), pytest.raises(InvalidArchive, match=r"\.\."):
        store.load(layout)
    assert is_empty(store)


# -- made ready for its first container


def chains(store: Store) -> dict[str, int]:
    """The merged indexes: the layer's id, and the file's inode."""
    return {p.parent.name: p.stat().st_ino for p in store.root.glob("erofs/layers/*/chain")}


@pytest.fixture
def erofs_store(tmp_path: Path) -> Iterator[Store]:
    need_filesystem("erofs")
    with Store(tmp_path / "root", run=tmp_path / "run", driver="erofs") as store:
        yield store


@pytest.mark.root
def test_the_index_of_a_chain_is_there_before_the_first_container(
    erofs_store: Store, tmp_path: Path
) -> None:
    store = erofs_store
    with closing(LayoutDirectory.create(tmp_path / "more")) as layout:
        put(layout, make(*LAYERS), "docker.io/library/more:latest")
        (more,) = store.load(layout)
    before = chains(store)
    assert set(before) == {more.layers[-1].id}
    assert files(store, "more") == {"etc/motd": b"one", "srv/a": b"a" * 5000}
    assert chains(store) == before
    with closing(LayoutDirectory.create(tmp_path / "base")) as layout:
        put(layout, make(*LAYERS[:2]), "docker.io/library/base:latest")
        (base,) = store.load(layout)  # its layers are there
    assert set(chains(store)) == {more.layers[-1].id, base.layers[-1].id}
    used = store.usage().indexes
    store.remove_image("more")
    assert set(chains(store)) == {base.layers[-1].id}
    assert store.usage().indexes < used
    store.remove_image("base")
    assert chains(store) == {}
    assert store.usage().indexes == 0


@pytest.mark.root
@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO])
def test_an_image_that_can_not_be_made_ready_is_loaded_all_the_same(
    erofs_store: Store, layout: LayoutDirectory, fault: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(images: object, out: int, *, identity: str) -> None:
        os.write(out, b"something")
        raise OSError(fault, os.strerror(fault))

    put(layout, make(*LAYERS), "docker.io/library/more:latest")
    with monkeypatch.context() as patch, closing(layout):
        patch.setattr(lamina.archive.erofs, "merge_indexes", full)
        (image,) = erofs_store.load(layout)
    assert chains(erofs_store) == {}
    assert not [*erofs_store.root.glob("erofs/staging/*/*")]
    assert files(erofs_store, "more") == {"etc/motd": b"one", "srv/a": b"a" * 5000}
    assert chains(erofs_store) == {}, "not for so few layers"
    erofs_store.driver.prepare(image.layers[-1].id)
    assert set(chains(erofs_store)) == {image.layers[-1].id}


@pytest.mark.root
def test_an_end_while_it_is_made_ready_leaves_nothing(
    erofs_store: Store, layout: LayoutDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = lamina.archive.erofs.merge_indexes

    def merge(*args: Any, **options: Any) -> object:
        begun.set()
        go_on.wait()
        return real(*args, **options)

    def interrupted(core: Core) -> None:
        if threading.current_thread() is threading.main_thread():  # others sync while layers come
            begun.wait()
            go_on.set()
            raise KeyboardInterrupt

    put(layout, make(*LAYERS), "docker.io/library/more:latest")
    monkeypatch.setattr(lamina.archive.erofs, "merge_indexes", merge)
    monkeypatch.setattr(Core, "sync_content", interrupted)
    with closing(layout), pytest.raises(KeyboardInterrupt):
        erofs_store.load(layout)
    assert is_empty(erofs_store)
    assert list(erofs_store.driver.ids()) == []
    assert not [*erofs_store.root.glob("erofs/staging/*/*")]


@pytest.mark.root
def test_a_full_disk_leaves_nothing(tmpfs_small: Path, layout: LayoutDirectory) -> None:
    big = os.urandom(3 << 20)
    put(layout, make({"a": big}, {"b": big}), "docker.io/library/big:latest")
    store = Store(tmpfs_small / "root", run=tmpfs_small / "run", driver="vfs")
    with store, closing(layout):
        with pytest.raises(OSError, match="No space"):
            store.load(layout)
        assert is_empty(store)


def test_progress_is_told_and_may_end_the_work(store: Store, layout: LayoutDirectory) -> None:
    put(layout, make({"a": os.urandom(4 << 20)}), "docker.io/library/big:latest")
    told = []
    with closing(layout):

        def stop(progress: object) -> None:
            told.append(progress)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.load(layout, progress=stop)
        assert is_empty(store)
        store.load(layout, progress=told.append)
    assert told


def test_a_later_entry_of_a_name_does_not_cost_the_tar(
    store: Store, layout: LayoutDirectory
) -> None:
    """What the unpacking throws away still belongs to the tar."""
    twice = tar({"a": b"first"})[: -1024 * 10] + tar({"a": b"second"})
    assert twice
    made = make({"a": b"x"})
    put(layout, with_plain_layer(made, twice), "docker.io/library/twice:latest")
    with closing(layout):
        (image,) = store.load(layout)
    with store.layers.tar(image.layers[0]) as stream:
        assert stream.read() == twice


def with_plain_layer(made: Made, data: bytes) -> Made:
    def set_diff_id(config: ImageConfig) -> None:
        config.rootfs.diff_ids[-1] = described(data, "").digest  # type: ignore[call-overload]

    return with_layer(configured(made, set_diff_id), data, "none")


# -- several at once --------------------------------------------------------------------


def test_two_who_load_the_same_unpack_it_once(open_store: MakeStore, tmp_path: Path) -> None:
    import threading

    made = make(*LAYERS, {"big": os.urandom(1 << 20)}, compression="gzip")
    with closing(LayoutDirectory.create(tmp_path / "layout")) as layout:
        put(layout, made, "docker.io/library/box:1")
    reads: list[str] = []
    gate = threading.Barrier(4)

    def load() -> None:
        with open_store() as store, closing(Counting(tmp_path / "layout")) as source:
            gate.wait(60)
            store.load(source)
            reads.extend(source.opened)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    store = open_store()
    layers = [layer.digest for layer, _ in made.blobs[1:]]
    assert [reads.count(digest) for digest in layers] == [1, 1, 1, 1]
    assert len(list(store.layers)) == 4
    assert store.check(contents=True) == []
