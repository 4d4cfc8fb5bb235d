"""Attributes of a container's files on their way into an image and out of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from lamina.archive.tar import TarReader
from lamina.errors import OptionUnsupported
from lamina.kernel import xattr
from lamina.store import Container, Store

pytestmark = pytest.mark.root

PORTABLE = {"user.note": b"\0\xff", "trusted.note": b"2"}
ALL = {**PORTABLE, "security.note": b"3", "user.overlay.x": b"4", "trusted.overlay.opaque": b"y"}


def marked(store: Store, root_fs: bytes) -> Container:
    """A container in which one file has attributes of every kind."""
    box = store.container(store.import_tar(io.BytesIO(root_fs)), name="box")
    with box.mounted() as root:
        (root / "etc/new").write_text("x")
        for name, value in ALL.items():
            try:
                xattr.set(root / "etc/new", name, value)
            except xattr.XattrUnsupported:
                pytest.skip("overlayfs has escaped attributes since Linux 6.7")
    return box


def attributes(root: Path) -> dict[str, bytes]:
    return xattr.list_all(root / "etc/new")


@pytest.mark.parametrize("squash", [False, True])
def test_all_attributes_come_back_from_a_commit(store: Store, root_fs: bytes, squash: bool) -> None:
    box = marked(store, root_fs)
    image = box.commit("all", xattrs="all", squash=squash)
    with store.container(image) as again:
        assert attributes(again.root) == ALL
    with store.container(box.commit("portable", squash=squash)) as again:
        assert attributes(again.root) == PORTABLE
    assert store.check(contents=True) == []


def test_squashing_layers_keeps_what_they_have(store: Store, root_fs: bytes) -> None:
    image = marked(store, root_fs).commit("all", xattrs="all")
    with store.container(store.squash(image)) as again:
        assert attributes(again.root) == ALL


@pytest.mark.parametrize("how", ["diff", "export"])
def test_a_tar_has_what_was_asked_for(store: Store, root_fs: bytes, how: str) -> None:
    box = marked(store, root_fs)
    for choice, expected in ((None, PORTABLE), ("portable", PORTABLE), ("all", ALL)):
        options = {} if choice is None else {"xattrs": choice}
        with getattr(box, how)(**options) as tar:
            found = {entry.name: dict(entry.xattrs) for entry in TarReader(tar)}
        assert found[b"etc/new"] == expected


def test_a_policy_that_is_none_is_an_error_before_anything_is_made(
    store: Store, root_fs: bytes
) -> None:
    box = store.container(store.import_tar(io.BytesIO(root_fs)), name="box")
    before = set(store.driver.ids())
    for pack in (box.commit, box.diff, box.export):
        options: dict[str, Any] = {"xattrs": "some"}
        with pytest.raises(OptionUnsupported, match="there is: portable, all"):
            pack(**options)
    assert set(store.driver.ids()) == before


def test_a_sparse_file_is_sparse_again_after_a_commit(store: Store, root_fs: bytes) -> None:
    """The layer's tar has its zeros in full, as the image specification wants it."""
    box = store.container(store.import_tar(io.BytesIO(root_fs)), name="box")
    with box.mounted() as root:
        write_sparse(root / "disk")
    image = box.commit()
    assert image.layers[-1].tar_size is not None
    assert image.layers[-1].tar_size > SPARSE
    with store.container(image) as again:
        assert_sparse(store, again.root / "disk")
    assert store.check(contents=True) == []


def test_a_sparse_file_stays_so_by_export_and_import(store: Store, root_fs: bytes) -> None:
    box = store.container(store.import_tar(io.BytesIO(root_fs)), name="box")
    with box.mounted() as root:
        write_sparse(root / "disk")
    with box.export(sparse=True) as tar:
        data = tar.read()
    assert len(data) < SPARSE / 4
    image = store.import_tar(io.BytesIO(data), "again")
    with store.container(image) as again:
        assert_sparse(store, again.root / "disk")
    with store.layers.tar(image.layers[0]) as tar:
        assert tar.read() == data


SPARSE = 20 << 20


def write_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SPARSE)
        file.seek(7 << 20)
        file.write(b"in the middle")


def assert_sparse(store: Store, path: Path) -> None:
    data = path.read_bytes()
    assert len(data) == SPARSE
    assert data.strip(b"\0") == b"in the middle"
    if store.driver.keeps_tars:  # EROFS does not tell; what counts is what the tars take
        files = (store.driver.home / "layers").glob("*/*")
        assert sum(p.stat().st_blocks for p in files if p.is_file()) * 512 < 2 << 20
    else:
        assert path.stat().st_blocks * 512 < 1 << 20
