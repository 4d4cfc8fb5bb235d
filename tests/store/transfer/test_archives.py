"""Images come in from files of every form, and go out into them."""

from __future__ import annotations

import gzip
import io
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lamina.errors import (
    DigestMismatch,
    ImageNotFound,
    InvalidArchive,
    InvalidImage,
    LayerBroken,
)
from lamina.oci.layout import LayoutDirectory
from lamina.store import Packing, Store
from lamina.store.transfer.moving import Form
from tests.oci.images import made_diff_ids, make, put, tar
from tests.store.conftest import damage

LAYERS = ({"etc/motd": b"one", "etc/gone": b"x"}, {"etc/.wh.gone": b""}, {"srv/a": b"a" * 5000})
FORMS: tuple[Form, ...] = ("docker-archive", "oci-archive", "oci")


@pytest.fixture
def full(store: Store, tmp_path: Path) -> Store:
    """The store with the image ``box:1``."""
    with closing(LayoutDirectory.create(tmp_path / "made")) as layout:
        put(layout, make(*LAYERS, compression="gzip"), "docker.io/library/box:1")
        store.load(layout)
    return store


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_image_is_loaded_again(full: Store, tmp_path: Path, form: Form) -> None:
    image = full.image("box:1")
    full.save(["box:1"], tmp_path / "out", format=form)
    full.remove_image("box:1")
    assert full.load(tmp_path / "out") == [image]
    assert image.names == ["box:1"]
    assert full.check(contents=True) == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("form", FORMS[:2])
def test_the_same_image_gives_the_same_archive(full: Store, form: Form) -> None:
    archives = []
    for _ in range(2):
        sink = io.BytesIO()
        full.save(["box:1"], sink, format=form)
        archives.append(sink.getvalue())
    assert archives[0] == archives[1]


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_archive_is_read_from_a_pipe(
    full: Store, form: Form, pack: Callable[[bytes], bytes]
) -> None:
    sink = io.BytesIO()
    image = full.image("box:1")
    full.save(["box:1"], sink, format=form)
    full.remove_image("box:1")
    read_end, write_end = os.pipe()

    def feed() -> None:
        with open(write_end, "wb") as pipe:
            pipe.write(pack(sink.getvalue()))

    thread = threading.Thread(target=feed)
    thread.start()
    with open(read_end, "rb") as pipe:
        assert full.load(pipe) == [image]
    thread.join()
    assert list((full.root / "staging").glob("*/*")) == []


def test_several_images_are_saved_and_one_is_chosen(full: Store, tmp_path: Path) -> None:
    with full.container("box:1") as box:
        (box.root / "new").write_text("new")
        box.commit("box:2")
    full.image("box:1").tag("third")
    full.save(["box:1", "box:2", "third"], tmp_path / "all.tar")
    for name in ("box:1", "box:2", "third"):
        full.remove_image(name)
    (image,) = full.load(tmp_path / "all.tar", ["box:2"])
    assert image.names == ["box:2"]
    full.load(tmp_path / "all.tar")
    assert full.image("box:1") == full.image("third")


def test_one_of_several_is_chosen_by_the_layout_s_tag_or_a_digest(
    store: Store, tmp_path: Path
) -> None:
    """umoci and skopeo give images such tags, which are no names outside."""
    one, two = make(*LAYERS), make({"two": b"2"})
    with closing(LayoutDirectory.create(tmp_path / "made")) as layout:
        put(layout, one, "1.0")
        put(layout, two, "2.0")
    (image,) = store.load(tmp_path / "made", ["2.0"])
    assert (image.diff_ids, image.names) == (made_diff_ids(two), [])
    (image,) = store.load(tmp_path / "made", [one.top.digest], name="one")
    assert (image.diff_ids, image.names) == (made_diff_ids(one), ["one:latest"])
    with pytest.raises(ImageNotFound, match=r"has 1\.0, 2\.0"):
        store.load(tmp_path / "made", ["3.0"])


def test_a_failed_save_leaves_what_was_there(full: Store, tmp_path: Path) -> None:
    target = tmp_path / "out.tar"
    target.write_text("precious")
    damage(full, full.image("box:1").layers[-1], "srv/a")
    with pytest.raises((LayerBroken, DigestMismatch)):
        full.save(["box:1"], target)
    assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_compression_that_docker_can_not_read_is_refused(full: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidImage, match="oci-archive"):
        full.save(["box:1"], tmp_path / "x", packing=Packing("gzip"))


def test_a_file_system_is_no_image(store: Store, tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_bytes(tar({"etc/passwd": b"root"}))
    with pytest.raises(InvalidImage, match="lamina import"):
        store.load(tmp_path / "root.tar")
    (tmp_path / "text").write_text("hello" * 1000)
    with pytest.raises((InvalidImage, InvalidArchive)):
        store.load(tmp_path / "text")
