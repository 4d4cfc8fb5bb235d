"""Images of the same layers that are run otherwise."""

from __future__ import annotations

import io

import pytest

from lamina.errors import InvalidName, LayerNotFound
from lamina.oci import RunConfig
from lamina.store import Image, Store


@pytest.fixture
def image(store: Store, root_fs: bytes) -> Image:
    return store.import_tar(io.BytesIO(root_fs), "image", config=RunConfig(cmd=["sh"]))


def test_the_layers_are_the_same_and_the_old_image_stays(store: Store, image: Image) -> None:
    config = RunConfig(cmd=["new"], env=["A=1"])
    new = store.configure(image, "new:1", config=config, author="me", message="why", created_by="x")
    assert new.layers == image.layers
    assert new.config.config == config
    assert new.names == ["new:1"]
    assert image.config.config == RunConfig(cmd=["sh"])
    before, step = new.config.history or []
    assert [before] == image.config.history
    assert (step.created_by, step.author, step.comment) == ("x", "me", "why")
    assert step.empty_layer
    store.remove_image("image")
    with store.container(new) as box:
        assert (box.root / "etc/motd").exists()
    assert store.check(contents=True) == []


def test_it_is_the_same_on_every_machine_at_the_same_moment(
    store: Store, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    one = store.configure(image, config=RunConfig(user="ann"))
    assert store.configure(image, config=RunConfig(user="ann")) == one
    assert one.config.created == "1970-01-02T00:00:00Z"
    assert (one.config.history or [])[-1].created == "1970-01-02T00:00:00Z"


def test_a_history_tells_of_all_layers_or_of_none(store: Store, image: Image) -> None:
    new = store.configure(image, keep_history=False, created_by="x")
    kept, step = new.config.history or []
    assert (kept.comment, kept.empty_layer, step.empty_layer) == (None, None, True)
    config = image.config.copy()
    config.history = None
    with store.work():
        without = store.images.create(config, image.top)
    assert store.configure(without, config=RunConfig(user="x")).config.history is None


def test_author_stays_goes_or_is_another(store: Store, image: Image) -> None:
    named = store.configure(image, author="me")
    assert store.configure(named).config.author == "me"
    assert store.configure(named, author="").config.author is None


def test_what_can_not_be_leaves_nothing(store: Store, image: Image) -> None:
    with pytest.raises(InvalidName):
        store.configure(image, "Not A Name", config=RunConfig(user="x"))
    assert list(store.images) == [image]
    assert image.config is not None
    assert image.chain_id is not None
    gone = image
    chain_id = image.chain_id
    store.remove_image("image")
    with pytest.raises((LayerNotFound, LookupError)):
        store.configure(gone)
    assert chain_id not in [layer.chain_id for layer in store.layers]
    assert store.check() == []
