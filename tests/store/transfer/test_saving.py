"""Images go out to layouts, and are what they were."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from lamina.errors import DigestMismatch, LayerBroken
from lamina.oci import ImageConfig, mediatypes
from lamina.oci.content import read_document
from lamina.oci.descriptor import Descriptor, described
from lamina.oci.layout import LayoutDirectory
from lamina.oci.manifest import Manifest
from lamina.progress import Progress
from lamina.store import Packing, Store
from lamina.types import DiffId
from tests.oci.images import Made, diff_ids, made_diff_ids, make, put
from tests.store.conftest import MakeStore, damage

LAYERS = ({"etc/motd": b"one", "etc/gone": b"x"}, {"etc/.wh.gone": b""}, {"srv/a": b"a" * 5000})
NAME = "docker.io/library/box:1"


def load(store: Store, path: Path, compression: str = "gzip", **options: bool) -> str:
    made = make(*LAYERS, compression=compression)
    with closing(LayoutDirectory.create(path)) as layout:
        put(layout, made, NAME)
        store.load(layout, **options)  # type: ignore[arg-type]
    return made.top.digest


def manifest_of(layout: LayoutDirectory) -> Manifest:
    return Manifest.decode(read_document(layout, layout.resolve(NAME)))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_what_went_out_comes_in_again(store: Store, tmp_path: Path, compression: str) -> None:
    load(store, tmp_path / "in")
    image = store.image("box:1")
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        (saved,) = store.save(["box:1"], layout, format="oci", packing=Packing(compression))
        assert diff_ids(layout, NAME) == image.diff_ids
        manifest = manifest_of(layout)
        assert {layer.media_type for layer in manifest.layers} == {
            mediatypes.layer_type(compression)
        }
        assert saved.manifest.digest == layout.resolve(NAME).digest
    image.tag("other")
    store.remove_image("box:1")
    with closing(LayoutDirectory(tmp_path / "out")) as layout:
        (again,) = store.load(layout)
    assert again == image
    assert store.check(contents=True) == []


def test_kept_blobs_go_out_with_the_digests_they_came_with(store: Store, tmp_path: Path) -> None:
    digest = load(store, tmp_path / "in", keep_blobs=True)
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        (saved,) = store.save(["box:1"], layout, format="oci", packing=Packing())
        assert layout.resolve(NAME).digest == digest == saved.manifest.digest
        assert saved.changed == ()
    assert store.check(contents=True) == []
    store.remove_image("box:1")
    assert list((store.root / "blobs").glob("*/*")) == []


def test_blobs_are_kept_also_of_layers_that_are_there(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path / "one")
    digest = load(store, tmp_path / "two", keep_blobs=True)
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        store.save(["box:1"], layout, format="oci", packing=Packing())
        assert layout.resolve(NAME).digest == digest


def test_a_blob_is_not_kept_for_a_layer_that_it_is_not(store: Store, tmp_path: Path) -> None:
    """Of a layer that is there, no blob is unpacked: one could be put in its place unseen."""
    load(store, tmp_path / "in")
    made, other = make(*LAYERS, compression="gzip"), make({"etc/evil": b"x"}, compression="gzip")
    manifest = Manifest.decode(made.data)
    manifest.layers[-1] = other.blobs[1][0]
    data = manifest.encode()
    lie = Made(described(data, mediatypes.OCI_MANIFEST), data, [*made.blobs, *other.blobs])
    with closing(LayoutDirectory.create(tmp_path / "lie")) as layout:
        put(layout, lie, "docker.io/library/lie:1")
        with pytest.raises(DigestMismatch, match=f"tar in blob {other.blobs[1][0].digest}"):
            store.load(layout, keep_blobs=True)
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        store.save(["box:1"], layout, format="oci", packing=Packing())
        assert diff_ids(layout, NAME) == made_diff_ids(made)
        assert not layout.has(other.blobs[1][0])


def test_a_manifest_that_lies_of_layers_that_are_there_does_not_go_out(
    store: Store, tmp_path: Path
) -> None:
    load(store, tmp_path / "in")
    made = make(*LAYERS, compression="gzip")
    for member, value in {"size": 1 << 63, "media_type": mediatypes.layer_type("zstd")}.items():
        manifest = Manifest.decode(made.data)
        setattr(manifest.layers[0], member, value)
        data = manifest.encode()
        lie = Made(described(data, mediatypes.OCI_MANIFEST), data, made.blobs)
        with closing(LayoutDirectory.create(tmp_path / f"lie {member}")) as layout:
            put(layout, lie, "docker.io/library/lie:1")
            store.load(layout)
        with closing(LayoutDirectory.create(tmp_path / f"out {member}")) as layout:
            (saved,) = store.save(["box:1"], layout, format="oci")
            assert diff_ids(layout, NAME) == made_diff_ids(made)
            assert saved.manifest.digest != lie.top.digest


def test_it_is_said_when_blobs_can_not_be_what_they_were(store: Store, tmp_path: Path) -> None:
    """Others' compression can't be done again; our own can."""
    load(store, tmp_path / "in", "zstd")
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        (saved,) = store.save(["box:1"], layout, format="oci", packing=Packing("gzip", level=9))
        assert list(saved.changed) == store.image("box:1").diff_ids


def test_our_own_compression_gives_the_same_again(open_store: MakeStore, tmp_path: Path) -> None:
    store = open_store()
    load(store, tmp_path / "in", "none")
    manifests = []
    for number in range(2):
        with closing(LayoutDirectory.create(tmp_path / f"out{number}")) as layout:
            store.save(["box:1"], layout, format="oci", packing=Packing("gzip", threads=number + 1))
            manifests.append(layout.resolve(NAME).digest)
    assert manifests[0] == manifests[1]


def test_an_image_given_by_its_id_gets_all_its_names(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path / "in")
    image = store.image("box:1")
    image.tag("example.com/other:2")
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        store.save([image.id], layout, format="oci")
        found = {name for named in layout.images() for name in named.names}
    assert found == {NAME, "example.com/other:2"}


def test_an_image_without_a_name_can_be_saved(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path / "in")
    image = store.image("box:1")
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        with store.container(image) as box:
            (box.root / "new").write_text("new")
            committed = box.commit()
        store.save([committed.id], layout, format="oci")
    with closing(LayoutDirectory(tmp_path / "out")) as layout:
        (named,) = layout.images()
        assert named.names == ()
        assert diff_ids(layout) == committed.diff_ids


def test_a_committed_image_goes_out_with_its_parents_blobs(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path / "in", keep_blobs=True)
    with store.container("box:1") as box:
        (box.root / "new").write_text("new")
        box.commit("box:2")
    made = make(*LAYERS, compression="gzip")
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        store.save(["box:2"], layout, format="oci", packing=Packing())
        layers = Manifest.decode(
            read_document(layout, layout.resolve("docker.io/library/box:2"))
        ).layers
    assert [layer.digest for layer in layers[:3]] == [layer.digest for layer, _ in made.blobs[1:]]
    assert len(layers) == 4


def test_an_image_may_be_removed_while_it_is_saved(store: Store, tmp_path: Path) -> None:
    class Removing(LayoutDirectory):
        def put_manifest(self, descriptor: Descriptor, data: bytes, name: str | None) -> None:
            super().put_manifest(descriptor, data, name)
            store.remove_image("box:1")

    load(store, tmp_path / "in")
    with closing(Removing.create(tmp_path / "out")) as layout:
        store.save(["box:1"], layout, format="oci")
    assert [*store.images, *store.layers, *store.check()] == []
    with closing(LayoutDirectory(tmp_path / "out")) as written:
        store.load(written)


def test_a_layer_that_was_damaged_is_not_saved(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path / "in")
    image = store.image("box:1")
    damage(store, image.layers[-1], "srv/a")
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        with pytest.raises((LayerBroken, DigestMismatch)):
            store.save(["box:1"], layout, format="oci", packing=Packing())
        assert layout.images() == []
    assert list((store.root / "staging").glob("*/*")) == []


def test_a_configuration_goes_out_as_it_came(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path / "in")
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        store.save(["box:1"], layout, format="oci", packing=Packing("none"))
        config = ImageConfig.decode(read_document(layout, manifest_of(layout).config))
    made = [DiffId(d) for d in made_diff_ids(make(*LAYERS, compression="gzip"))]
    assert config.rootfs.diff_ids == made


@pytest.mark.parametrize(
    ("compression", "level"), [("gzip", 0), ("gzip", 10), ("zstd", 20), ("xz", None), ("x", None)]
)
def test_a_packing_that_can_not_be_is_refused(compression: str, level: int | None) -> None:
    with pytest.raises(ValueError, match=r"level|written"):
        Packing(compression, level=level)


@pytest.mark.parametrize("keep_blobs", [False, True])
@pytest.mark.parametrize("compression", [None, "none", "gzip"])
def test_progress_counts_each_byte_once(
    store: Store, tmp_path: Path, compression: str | None, keep_blobs: bool
) -> None:
    load(store, tmp_path / "in", keep_blobs=keep_blobs)
    total = sum(layer.tar_size or 0 for layer in store.image("box:1").layers)
    seen: list[Progress] = []
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        packing = Packing(compression)
        store.save(["box:1"], layout, format="oci", packing=packing, progress=seen.append)
    assert (seen[-1].done, seen[-1].total) == (total, total)
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_progress_shows_while_a_layer_is_compressed(store: Store, tmp_path: Path) -> None:
    made = make({"big": os.urandom(48 << 20)})
    seen: list[Progress] = []
    with closing(LayoutDirectory.create(tmp_path / "in")) as layout:
        put(layout, made, NAME)
        store.load(layout)
    with closing(LayoutDirectory.create(tmp_path / "out")) as layout:
        packing = Packing("gzip", 9, threads=1)
        store.save(["box:1"], layout, format="oci", packing=packing, progress=seen.append)
    assert any(0 < p.done < (p.total or 0) for p in seen)


class Slow:
    """A stream that gives little at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, _: int) -> bytes:
        time.sleep(0.04)
        return self._stream.read(64 << 10)


class FarLayout(LayoutDirectory):
    """A layout that takes its time."""

    def put(
        self,
        descriptor: Descriptor,
        stream: BinaryIO,
        *,
        reopen: Callable[[], BinaryIO] | None = None,
    ) -> None:
        super().put(descriptor, cast(BinaryIO, Slow(stream)), reopen=reopen)


@pytest.mark.parametrize("keep_blobs", [False, True])
def test_progress_shows_while_a_blob_is_sent(
    store: Store, tmp_path: Path, keep_blobs: bool
) -> None:
    made = make({"big": os.urandom(4 << 20)}, compression="gzip")
    seen: list[Progress] = []
    with closing(LayoutDirectory.create(tmp_path / "in")) as layout:
        put(layout, made, NAME)
        store.load(layout, keep_blobs=keep_blobs)
    with closing(FarLayout.create(tmp_path / "out")) as layout:
        store.save(["box:1"], layout, format="oci", progress=seen.append)
    total = seen[-1].total or 0
    assert len({p.done for p in seen if total / 2 < p.done < total}) > 1
    assert seen[-1].done == total
