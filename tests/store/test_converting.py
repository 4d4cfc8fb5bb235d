"""Images move between drivers, and are the same images there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lamina.errors import DriverUnsupported, ImageNotFound, InvalidName
from lamina.oci.layout import LayoutDirectory
from lamina.progress import Progress
from lamina.store import Conversion, Image, Store
from lamina.store.core import own_driver
from tests.oci.images import make, put
from tests.store.conftest import damage
from tests.store.faults import Fault, die, in_child
from tests.support import need_filesystem

pytestmark = pytest.mark.root

BASE = ({"etc/motd": b"one", "etc/gone": b"x"}, {"etc/.wh.gone": b""})
PAIRS = [
    ("overlay", "erofs"),
    ("erofs", "overlay"),
    ("aufs", "erofs"),
    ("erofs", "aufs"),
    ("overlay", "vfs"),
    ("vfs", "overlay"),
]


@pytest.fixture(autouse=True)
def _erofs() -> None:
    need_filesystem("erofs")


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[[str | None], Store]]:
    """Opens one and the same store with a driver, or with its own."""
    opened: list[Store] = []

    def open_store(driver: str | None = None) -> Store:
        opened.append(Store(tmp_path / "root", run=tmp_path / "run", driver=driver))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


OpenStore = Callable[..., Store]


def _fill(store: Store, place: Path) -> tuple[Image, Image]:
    """Two images that share two layers, and have one of their own each."""
    with closing(LayoutDirectory.create(place)) as layout:
        for name in ("one", "two"):
            made = make(*BASE, {f"srv/{name}": name.encode() * 3000})
            put(layout, made, f"docker.io/library/{name}:1")
    one, two = sorted(store.load(place), key=lambda image: image.names)
    return one, two


def _files(store: Store, image: Image) -> dict[str, bytes]:
    with store.container(image) as box:
        found = (path for path in box.root.rglob("*") if path.is_file())
        return {str(path.relative_to(box.root)): path.read_bytes() for path in found}


def _layers(store: Store) -> dict[str, set[str | None]]:
    """The chain ids of the image layers that each driver holds."""
    found: dict[str, set[str | None]] = {}
    for layer in store.layers:
        if layer.kind == "image":
            found.setdefault(layer.driver, set()).add(layer.chain_id)
    return found


def _tars(store: Store, image: Image) -> list[bytes]:
    tars = []
    for layer in image.layers:
        with store.layers.tar(layer) as tar:
            tars.append(tar.read())
    return tars


@pytest.mark.parametrize(("old", "new"), PAIRS, ids="-".join)
def test_images_are_the_same_with_another_driver(
    old: str, new: str, open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store(old)
    one, two = _fill(store, tmp_path / "layout")
    before = [(_files(store, image), _tars(store, image), image.chain_id) for image in (one, two)]
    chains = _layers(store)[old]
    result = store.convert(new).run()
    assert (result.images, result.layers, result.removed) == (2, 4, 4), "shared layers once"
    assert not result.faults
    assert not result.used
    assert result.is_default
    assert _layers(store) == {new: chains}
    assert list(store.driver.ids()) == [], "the old driver has nothing left"
    assert store.check(contents=True) == []
    again = open_store()
    assert again.driver.name == new, "the store is opened with the new driver"
    after = [
        (_files(again, image), _tars(again, image), image.chain_id)
        for image in (again.image("one:1"), again.image("two:1"))
    ]
    assert after == before


def test_the_old_copy_is_kept_when_asked(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store("overlay")
    one, _ = _fill(store, tmp_path / "layout")
    result = store.convert("erofs", keep=True).run()
    assert (result.images, result.removed, result.is_default) == (2, 0, False)
    found = _layers(store)
    assert found["overlay"] == found["erofs"]
    assert open_store().driver.name == "overlay"
    assert _files(store, one) == _files(open_store("erofs"), one)
    later = store.convert("erofs").run()
    assert (later.images, later.layers, later.removed) == (0, 0, 4), "and goes later"
    assert later.is_default
    assert store.check(contents=True) == []


def test_one_image_moves_without_the_other(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store("overlay")
    one, two = _fill(store, tmp_path / "layout")
    plan = store.convert("erofs", ["one:1"])
    assert (plan.images, len(plan.layers)) == ([one], 3)
    assert plan.size == sum(layer.tar_size or 0 for layer in one.layers)
    assert plan.available > 0
    result = plan.run()
    assert (result.images, result.layers, result.removed) == (1, 3, 1), "two are shared"
    assert not result.is_default
    assert open_store().driver.name == "overlay"
    assert two.diff_ids == [layer.diff_id for layer in two.layers]
    assert one.diff_ids == [layer.diff_id for layer in open_store("erofs").image("one:1").layers]
    assert store.check(contents=True) == []


def test_what_a_container_stands_on_stays(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store("overlay")
    one, two = _fill(store, tmp_path / "layout")
    box = store.container(one, name="box", keep=True)
    with box.mounted() as root:
        (root / "new").write_text("1")
    result = store.convert("erofs").run()
    assert result.images == 2
    assert result.removed == 1, "only that of the other image alone"
    (used,) = result.used
    assert str(used) == (
        "image one:1: its layers stay with driver overlay too: container box stands on it"
    )
    assert result.is_default
    again = open_store()
    with again.open("box").mounted() as root:
        assert (root / "new").read_text() == "1"
        assert (root / "etc/motd").read_text() == "one"
    with again.container("two:1") as other:
        assert (other.root / "srv/two").exists()
    again.open("box").remove()
    assert again.convert("erofs").run().removed == 3
    assert list(_layers(again)) == ["erofs"]
    assert again.check(contents=True) == []
    assert two.names


def test_a_damaged_layer_is_named_and_the_others_go_on(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store("overlay")
    one, two = _fill(store, tmp_path / "layout")
    damage(store, one.layers[2], "srv/one")
    result = store.convert("erofs").run()
    (fault,) = result.faults
    assert fault.image == "one:1"
    assert fault.what == (
        f"layer {one.layers[2].id} is broken: file 'srv/one' is not what it was (checksum)"
    )
    assert result.images == 1
    assert not result.is_default
    assert set(_layers(store)["erofs"]) == {
        layer.chain_id for layer in open_store("erofs").image(two.id).layers
    }
    assert open_store().driver.name == "overlay"
    assert [layer.driver for layer in one.layers] == ["overlay"] * 3, "as it was"
    left = [path for path in (store.root / "staging").glob("*/*") if path.is_file()]
    assert left == []


def test_a_tar_that_changed_is_named(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store("erofs")
    one, _ = _fill(store, tmp_path / "layout")
    damage(store, one.layers[2], "srv/one")
    (fault,) = store.convert("overlay").run().faults
    assert str(one.diff_ids[2]) in fault.what
    assert "layer 1 of 1" in fault.what or "layer 3 of 3" in fault.what


def test_a_file_that_is_gone_is_named(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store("overlay")
    one, _ = _fill(store, tmp_path / "layout")
    top = one.layers[2]
    Path(store.driver.metadata(top.id)["UpperDir"], "srv/one").unlink()
    (fault,) = store.convert("erofs", ["one:1"]).run().faults
    assert top.id in fault.what


def test_an_image_without_layers(open_store: OpenStore) -> None:
    from lamina.oci import ImageConfig

    store = open_store("overlay")
    image = store.images.create(ImageConfig(architecture="amd64", os="linux"), None, ["empty"])
    assert store.convert("vfs").run().images == 1
    assert open_store("vfs").image("empty").layers == []
    assert image.names


def test_what_is_asked_for_has_to_be_there(open_store: OpenStore) -> None:
    store = open_store("overlay")
    with pytest.raises(InvalidName, match="no driver is called"):
        store.convert("zfs")
    with pytest.raises(ImageNotFound):
        store.convert("erofs", ["none"])


def test_a_driver_that_does_not_work_here_is_refused(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.kernel import filesystems

    store = open_store("vfs")
    monkeypatch.setattr(filesystems, "supported", lambda name: False)
    with pytest.raises(DriverUnsupported, match="the kernel has no"):
        store.convert("erofs")


def test_progress_is_told_and_an_interrupted_conversion_goes_on(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store("overlay")
    _fill(store, tmp_path / "layout")
    told: list[Progress] = []

    def stop(progress: Progress) -> None:
        told.append(progress)
        if len({each.what for each in told}) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.convert("erofs").run(stop)
    assert told[0].what.startswith("converting ")
    assert told[0].total
    plan = store.convert("erofs")
    assert len(plan.images) == 1, "the first one is done"
    assert plan.run().is_default
    assert store.check(contents=True) == []


def test_a_conversion_that_was_killed_anywhere_goes_on(tmp_path: Path) -> None:
    def prepare(name: str) -> Callable[[], Store]:
        place = tmp_path / name

        def open_store() -> Store:
            return Store(place / "root", run=place / "run", driver="overlay")

        with open_store() as store:
            _fill(store, place / "layout")
        return open_store

    with prepare("count")() as store, Fault(0, die) as fault:
        store.convert("erofs").run()
    for point in range(1, fault.count + 1, max(1, fault.count // 10)):
        open_store = prepare(str(point))

        def work(open_store: Callable[[], Store] = open_store, point: int = point) -> None:
            with open_store() as store, Fault(point, die):
                store.convert("erofs").run()

        assert in_child(work) in (-signal.SIGKILL, 0), f"at call {point}"
        with open_store() as store:
            assert store.check(contents=True) == [], f"at call {point}"
            result = store.convert("erofs").run()
            assert not result.faults
            assert result.is_default
            assert len(_layers(store)["erofs"]) == 4
            assert list(_layers(store)) == ["erofs"]
            assert store.check(contents=True) == []


def test_two_who_convert_the_same(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store("overlay")
    _fill(store, tmp_path / "layout")

    def work() -> None:
        with Store(tmp_path / "root", run=tmp_path / "run", driver="overlay") as mine:
            result = mine.convert("erofs").run()
            assert not result.faults

    first = os.fork()
    if first == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    work()
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0
    assert list(_layers(store)) == ["erofs"]
    assert len(_layers(store)["erofs"]) == 4
    assert store.check(contents=True) == []


# -- which driver a store is opened with


def test_a_store_keeps_the_driver_that_it_was_begun_with(open_store: OpenStore) -> None:
    with open_store("overlay") as store:
        assert store.driver.name == "overlay"
    with open_store("erofs") as store:
        assert store.driver.name == "erofs", "asked for"
    assert open_store().driver.name == "overlay", "though erofs has a home too, and is better"


def test_the_best_one_is_recorded_at_the_beginning(open_store: OpenStore) -> None:
    with open_store() as store:
        name = store.driver.name
        with store._core.db.read() as tx:
            assert own_driver(tx) == name


def test_of_an_old_store_it_is_the_one_with_the_most_layers(
    open_store: OpenStore, tmp_path: Path
) -> None:
    with open_store("overlay") as store:
        _fill(store, tmp_path / "layout")
        store.convert("erofs", ["one:1"], keep=True).run()
        with store._core.db.write() as tx:
            tx.run("DELETE FROM settings WHERE key = 'driver'")
    assert open_store().driver.name == "overlay"


def test_a_conversion_is_a_public_name() -> None:
    assert Conversion.run.__doc__
