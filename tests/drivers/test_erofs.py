"""What is particular to layers that are tars: their mounts, and damage to their files."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lamina.archive.erofs import Image, beside
from lamina.archive.erofs import format as f
from lamina.archive.tar import Entry, TarWriter, Type
from lamina.drivers import overlaymount
from lamina.drivers.base import Driver, Staged
from lamina.drivers.erofs import ErofsDriver, listings, sealing
from lamina.drivers.erofs.driver import StagedTar
from lamina.drivers.erofs.tarlayer import merged_view
from lamina.drivers.overlay import OverlayDriver
from lamina.drivers.stacking import StackingDriver
from lamina.errors import InvalidArchive, LayerBroken, LayerInUse, LayerNotFound, MountError
from lamina.kernel import erofs, verity
from lamina.kernel.mount import FsContext
from lamina.kernel.mountinfo import mounts_below
from lamina.kernel.remove import remove_tree
from lamina.types import LayerId
from tests import leaks
from tests.conformance.trees import facts
from tests.store.conftest import Files, tar
from tests.store.faults import Fault, die, in_child
from tests.support import need_filesystem

pytestmark = pytest.mark.root

Make = Callable[[], ErofsDriver]


@contextmanager
def _drivers(place: Path) -> Iterator[Make]:
    """Makes drivers of one home, as several processes have them."""
    made: list[ErofsDriver] = []

    def make() -> ErofsDriver:
        made.append(ErofsDriver(place / "erofs", place / "run"))
        return made[-1]

    yield make
    for driver in made:
        driver.cleanup()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    need_filesystem("erofs")
    with _drivers(tmp_path) as make:
        yield make


@pytest.fixture
def driver(make: Make) -> ErofsDriver:
    return make()


def _fill(driver: ErofsDriver, count: int) -> LayerId:
    """A chain of layers, each with a file of its own and one that all have; the top's id."""
    parent = None
    for number in range(count):
        id = LayerId(f"layer-{number}")
        driver.create(id, parent)
        content: Files = {f"f{number}": b"x" * 600, "same": b"%d" % number, f"d/{number % 10}": b""}
        driver.apply(id, parent, io.BytesIO(tar(content)))
        parent = id
    assert parent is not None
    return parent


def _loops(place: Path) -> set[str]:
    return leaks.Snapshot.take(str(place)).loops


def _holds(root: Path, count: int) -> bool:
    names = {f"f{number}" for number in range(count)} | {"same", "d"}
    return set(os.listdir(root)) == names and (root / "same").read_text() == str(count - 1)


# -- mounts


@pytest.mark.parametrize("count", [1, 60, 500])
def test_images_of_many_layers(driver: ErofsDriver, count: int) -> None:
    top = _fill(driver, count)
    with driver.mounted(top) as root:
        assert _holds(root, count)
    box = LayerId("box")
    driver.create_read_write(box, top)
    with driver.mounted(box) as root:
        (root / "new").write_text("1")
        assert len(os.listdir(root)) == count + 3
    assert len(driver.changes(box, top)) == 1
    assert mounts_below(driver.home) == []


def test_what_another_process_does_to_a_chain_shows(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "_SETTLED", 0)
    ours, other = make(), make()
    top = _fill(ours, 3)
    with ours.mounted(top) as root:
        assert _holds(root, 3)
    for number in reversed(range(3)):
        other.remove(LayerId(f"layer-{number}"))
    with pytest.raises(LayerNotFound):
        ours.get(top)
    _fill(other, 2)
    other.create(top, LayerId("layer-1"))
    with ours.mounted(top) as root:  # a directory now, on two tars
        assert _holds(root, 2)
    other.apply(top, LayerId("layer-1"), io.BytesIO(tar({"new": b"new"})))
    with ours.mounted(top) as root:
        assert (root / "new").read_bytes() == b"new"
    remove_tree(Path(ours.layout.path(LayerId("layer-0"), "")))
    with pytest.raises(LayerBroken, match="its parent layer-0 is gone"):
        ours.get(top)


def test_many_layers_take_no_more_descriptors_than_a_user_has(make: Make) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        driver = make()
        top = _fill(driver, 300)
        with driver.mounted(top) as root:
            assert _holds(root, 300)
        driver.create(LayerId("linked"), top)
        link = _hard_link(b"second", b"f0")
        driver.apply(LayerId("linked"), top, io.BytesIO(link))
        with driver.mounted(LayerId("linked")) as root:
            assert (root / "second").read_bytes() == b"x" * 600
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _hard_link(name: bytes, target: bytes) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    writer.add(Entry(name, Type.HARDLINK, linkname=target), iter([]))
    writer.close()
    return out.getvalue()


def test_more_than_an_index_holds_is_mounted_one_by_one(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f, "DEVICES_MAX", 5)
    top = _fill(driver, 20)
    with driver.mounted(top) as root:
        assert _holds(root, 20)
    box = LayerId("box")
    driver.create_read_write(box, top)
    with driver.mounted(box) as root:
        (root / "f3").unlink()
        assert (root / "same").read_text() == "19"
    assert not Path(driver.metadata(top)["Index"]).with_name("chain").exists()
    assert [str(change.path) for change in driver.changes(box, top)]
    assert mounts_below(driver.home) == []


def test_a_kernel_that_refuses_the_chain_gets_the_layers(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = erofs.open_mount

    def few(index: str, devices: list[str], **options: Any) -> int:
        if len(devices) > 2:
            raise MountError(28, "erofs", index)
        return real(index, devices, **options)

    monkeypatch.setattr(erofs, "open_mount", few)
    top = _fill(driver, 6)
    with driver.mounted(top) as root:
        assert _holds(root, 6)


def test_a_full_disk_has_room_for_mounts(tmpfs_small: Path) -> None:
    need_filesystem("erofs")
    with _drivers(tmpfs_small) as make:
        driver = make()
        top = _fill(driver, 12)
        box = LayerId("box")
        driver.create_read_write(box, top)
        with pytest.raises(OSError), open(tmpfs_small / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        for id in (top, box):
            with driver.mounted(id) as root:
                assert (root / "same").read_text() == "11"
        assert not Path(driver.layout.path(top, "chain")).exists()
        (tmpfs_small / "filler").unlink()
        with driver.mounted(box) as root:
            assert (root / "f0").exists()
        assert Path(driver.layout.path(top, "chain")).exists()


def test_a_few_layers_above_a_merged_index_get_none_of_their_own(driver: ErofsDriver) -> None:
    """As when an image is made step by step."""
    base = _fill(driver, 12)
    driver.prepare(base)
    steps: list[Files] = [
        {"new": b"1", ".wh.f0": b""},
        {"d/.wh..wh..opq": b"", "d/only": b"2"},
        {"f1/instead": b"3", ".wh.same": b""},
    ]
    top, tops = base, []
    for number, content in enumerate(steps * 3):
        id = LayerId(f"step-{number}")
        driver.create(id, top)
        driver.apply(id, top, io.BytesIO(tar(content)))
        box, top = LayerId(f"box-{number}"), id
        tops.append(id)
        driver.create_read_write(box, id)
        with driver.mounted(box) as root:
            found = facts(root)
        has_index = Path(driver.layout.path(id, "chain")).exists()
        assert has_index == (number == 8)
        driver.prepare(id)
        driver.remove(box)
        driver.create_read_write(box, id)
        with driver.mounted(box) as root:
            assert facts(root) == found, "one by one and merged"
        driver.remove(box)
        if not has_index:
            Path(driver.layout.path(id, "chain")).unlink()


def test_a_mount_stays_when_the_files_lose_their_names(make: Make) -> None:
    driver = make()
    top = _fill(driver, 3)
    with driver.mounted(top) as root:
        with pytest.raises(LayerInUse):
            make().remove(top)
        for id in driver.ids():
            for name in ("tar", "index", "chain"):
                Path(driver.layout.path(id, name)).unlink(missing_ok=True)
        assert _holds(root, 3)
        assert (root / "f0").read_bytes() == b"x" * 600


@pytest.mark.parametrize("has_parent", [True, False])
def test_a_directory_beside_its_tar_is_not_written(tmpfs_small: Path, has_parent: bool) -> None:
    need_filesystem("erofs")
    with _drivers(tmpfs_small) as make:
        driver, id, parent = make(), LayerId("layer"), None
        if has_parent:
            parent = LayerId("directory")
            driver.create(parent)
            with driver.mounted(parent) as root:
                (root / "below").write_text("1")
        driver.create(id, parent)
        data = tar({"f": b"1"}) if has_parent else _too_large_an_attribute()
        driver.apply(id, parent, io.BytesIO(data))
        assert "UpperDir" in driver.metadata(id), "it is no index"
        for path in (driver.pin(id), driver.get(id)):
            assert (path / "f").is_file()
            with pytest.raises(OSError, match="Read-only"):
                (path / "f").write_text("2")
        driver.put(id)
        driver.unpin(id)
        assert all("ro" in mount.options for mount in driver.mounts(id))
        driver.release_mounts(id)
        with driver.diff(id, parent) as stream:
            assert stream.read() == data
        more = tar({"g": b"2"})
        driver.apply(id, parent, io.BytesIO(more))
        with driver.mounted(id) as root:
            (root / "h").write_text("3")
        with driver.diff(id, parent) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            assert {name.removeprefix("./") for name in archive.getnames()} >= {"f", "g", "h"}
        assert mounts_below(driver.home) == []


def _too_large_an_attribute() -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    writer.add(Entry(b"f", xattrs={"trusted.large": bytes(1 << 16)}), iter([]))
    writer.close()
    return out.getvalue()


@pytest.mark.parametrize("content", ["an index", "a directory"])
def test_what_is_for_another_parent_is_applied_to_a_fixed_layer(
    tmpfs_small: Path, content: str
) -> None:
    need_filesystem("erofs")
    with _drivers(tmpfs_small) as make:
        driver = make()
        below, other, id = LayerId("below"), LayerId("other"), LayerId("layer")
        for name in (below, other):
            driver.create(name)
            driver.apply(name, None, io.BytesIO(tar({"d/low": b"1", "gone": b"1"})))
        driver.create(id, below)
        data = tar({"f": b"1", "g": b"1"}) if content == "an index" else _too_large_an_attribute()
        driver.apply(id, below, io.BytesIO(data))
        assert ("UpperDir" in driver.metadata(id)) == (content == "a directory")
        with driver.mounted(id):
            pass  # a merged index of before is not to be seen again
        driver.apply(id, other, io.BytesIO(tar({".wh.gone": b"", "f": b"2", "d/new": b"3"})))
        with driver.mounted(id) as root:
            assert (root / "f").read_text() == "2"
            assert {path.name for path in (root / "d").iterdir()} == {"low", "new"}
            assert not (root / "gone").exists()
            assert (root / "g").exists() == (content == "an index")
        with driver.diff(id, below) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            names = {name.removeprefix("./") for name in archive.getnames()}
        assert {"f", "d/new", ".wh.gone"} <= names
        assert "d/low" not in names
        assert mounts_below(driver.home) == []


class _Sink:
    """An observer that keeps every byte."""

    def __init__(self) -> None:
        self.data = bytearray()

    def raw(self, data: memoryview) -> None:
        self.data += data

    def begin(self, entry: Entry) -> None:
        pass

    def payload(self, data: memoryview) -> None:
        self.data += data

    def end(self) -> None:
        pass


def test_the_tar_is_whole_where_its_middle_has_no_place(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "_CHUNKS_MAX", 2)
    out = io.BytesIO()
    writer = TarWriter(out)
    pieces = ((0, 512), (4096, 512))
    writer.add(Entry(b"sparse", size=8192, sparse=pieces), iter([b"x" * 1024]))
    for number in range(200):
        writer.add(Entry(b"f%d" % number, size=20_000), iter([b"y" * 20_000]))
    writer.close()
    id, seen = LayerId("layer"), _Sink()
    driver.create(id)
    driver.apply(id, None, io.BytesIO(out.getvalue()), observer=seen)
    assert "UpperDir" in driver.metadata(id), "it is no index"
    with driver.mounted(id) as root:
        assert len(os.listdir(root)) == 201
    with driver.diff(id) as stream:
        assert stream.read() == out.getvalue()
    assert seen.data == out.getvalue()


@pytest.mark.parametrize("count", [1, 3])
def test_a_label_is_an_option_of_the_mount(
    make: Make,
    tmp_path: Path,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """And the kernel says the same to it as on overlayfs: without SELinux it knows no labels."""
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    given: list[tuple[str, str]] = []
    real = FsContext.string

    def string(self: FsContext, key: str, value: Any) -> None:
        if key == "context":
            given.append((self.fstype, value))
        real(self, key, value)

    monkeypatch.setattr(FsContext, "string", string)
    driver, overlay = make(), OverlayDriver(tmp_path / "overlay", tmp_path / "overlay-run")
    request.addfinalizer(overlay.cleanup)
    top = _fill(driver, count)
    overlay.create(LayerId("below"))
    overlay.create_read_write(LayerId("box"), LayerId("below"))
    refusals = [_refusal(overlay, LayerId("box"), label), _refusal(driver, top, label)]
    assert refusals[0] == refusals[1]
    assert ("erofs", label) in given
    if overlaymount.by_descriptor():  # else it is one of mount(2)'s
        assert ("overlay", label) in given
    assert mounts_below(driver.home) == []
    with driver.mounted(top) as root:
        assert _holds(root, count)


def _refusal(driver: Driver, id: LayerId, label: str) -> int | None:
    """The errno with which the kernel refuses a label, if it does."""
    try:
        with driver.mounted(id, label) as root:
            assert os.getxattr(root, "security.selinux").startswith(label.encode())
    except MountError as error:
        return error.errno
    return None


def test_nothing_is_mounted_after_the_last_put(make: Make) -> None:
    one, two = make(), make()
    top = _fill(one, 3)
    one.get(top)
    two.get(top)
    one.put(top)
    assert len(mounts_below(one.home)) == 1
    two.put(top)
    assert mounts_below(one.home) == []


@pytest.mark.parametrize("place", ["ext4", "tmpfs_small"])
def test_loop_devices_go_with_the_last_put(
    place: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_filesystem("erofs")
    directory: Path = request.getfixturevalue(place)
    real = erofs.open_mount
    monkeypatch.setattr(
        erofs, "open_mount", lambda *args, **options: real(*args, use_loop=True, **options)
    )
    with _drivers(directory) as make:
        driver = make()
        top = _fill(driver, 12)
        box = LayerId("box")
        driver.create_read_write(box, top)
        assert _loops(directory) == set()
        with driver.mounted(box) as root:
            assert (root / "f0").read_bytes() == b"x" * 600
            assert len(_loops(directory)) == 13, "the index and twelve tars"
        assert _loops(directory) == set()
        for id in (box, *(LayerId(f"layer-{n}") for n in reversed(range(12)))):
            driver.remove(id)
        assert _loops(directory) == set()


@pytest.mark.parametrize("place", ["ext4", "xfs", "btrfs", "tmpfs_small"])
def test_homes_on_every_file_system(place: str, request: pytest.FixtureRequest) -> None:
    need_filesystem("erofs")
    directory: Path = request.getfixturevalue(place)
    ErofsDriver.probe(directory / "erofs")
    with _drivers(directory) as make:
        driver = make()
        top = _fill(driver, 5)
        box = LayerId("box")
        driver.create_read_write(box, top)
        with driver.mounted(box) as root:
            (root / "f1").write_text("changed")
            assert (root / "f4").read_bytes() == b"x" * 600
        assert [str(c.kind.name).lower() for c in driver.changes(box, top)] == ["modified"]
    assert _loops(directory) == set()


def test_files_are_got_without_a_mount(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    writer = TarWriter(out)
    big = bytes(100_000) + b"end"
    writer.add(Entry(b"d/f", size=len(big)), iter([big]))
    writer.add(Entry(b"up", Type.SYMLINK, linkname=b"/d/../d"), iter([]))
    writer.add(Entry(b"loop", Type.SYMLINK, linkname=b"loop"), iter([]))
    writer.add(Entry(b"link", Type.SYMLINK, linkname=b"d/f"), iter([]))
    writer.close()
    id = LayerId("layer")
    driver.create(id)
    driver.apply(id, None, io.BytesIO(out.getvalue()))
    monkeypatch.delattr(erofs, "open_mount")
    getter = driver.diff_getter(id)
    try:
        for name in (b"d/f", b"/d/f", b"./up/f", b"d/../../d/f"):
            with getter.open(name) as file:
                assert file.read() == big
        for name in (b"d", b"link", b"loop/f", b"none", b"d/f/x", b"", b"../x"):
            with pytest.raises(FileNotFoundError):
                getter.open(name)
        with pytest.raises(LayerInUse):
            ErofsDriver(driver.home, driver.run).remove(id)
    finally:
        getter.close()


# -- made ahead


def test_what_was_prepared_is_mounted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make()
    top = _fill(driver, 4)
    driver.prepare(LayerId("layer-0"))
    assert not Path(driver.layout.path(LayerId("layer-0"), "chain")).exists(), "it is one layer"
    driver.prepare(top)
    chain = Path(driver.layout.path(top, "chain"))
    made = chain.stat()
    driver.prepare(top)
    box = LayerId("box")
    driver.create_read_write(box, top)
    driver.prepare(box)
    for id in (top, box):
        with make().mounted(id) as root:
            assert _holds(root, 4)
    assert (chain.stat().st_ino, chain.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert mounts_below(driver.home) == []
    driver.remove(box)
    driver.remove(top)  # nothing refers to it any more
    with pytest.raises(LayerNotFound):
        driver.prepare(top)


def test_preparing_on_a_full_disk_leaves_nothing(tmpfs_small: Path) -> None:
    need_filesystem("erofs")
    with _drivers(tmpfs_small) as make:
        driver = make()
        top = _fill(driver, 6)
        with pytest.raises(OSError), open(tmpfs_small / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        with pytest.raises(OSError):
            driver.prepare(top)
        assert not Path(driver.layout.path(top, "chain")).exists()
        for own in (driver.home / "staging").iterdir():
            assert not own.is_dir() or list(own.iterdir()) == []


def test_indexes_count_once_and_go_with_their_layer(driver: ErofsDriver) -> None:
    top = _fill(driver, 3)
    place = Path(driver.layout.path(top, ""))
    before, beside = driver.usage(top), driver.overhead(top)
    assert beside == (place / "index").stat().st_size
    driver.prepare(top)
    chain = (place / "chain").stat()
    after = driver.usage(top)
    assert (after.size - before.size, after.inodes - before.inodes) == (chain.st_blocks * 512, 1)
    assert driver.overhead(top) == beside + chain.st_size
    driver.remove(top)
    assert not place.exists()
    assert driver.overhead(top) == 0
    assert list(driver.home.rglob("chain")) == []


# -- changes


def _random_layer(chance: random.Random) -> bytes:
    """A tar of what may happen to a few names: replaced types, marks, links, attributes."""
    names = [b"a", b"b", b"d/a", b"d/b", b"d/e/a", b"d/e/b"]
    files: list[bytes] = []
    out = io.BytesIO()
    writer = TarWriter(out)
    for name in chance.sample([b"d", b"d/e", *names], 6):
        mode, times = chance.choice([0o755, 0o644]), chance.choice([1, 10**9, 10**9 + 5])
        uid = chance.choice([0, 0, 7])
        xattrs = chance.choice([{}, {}, {"trusted.x": b"1"}, {"trusted.x": b"2"}])
        head, _, base = name.rpartition(b"/")
        mark = (head + b"/" if head else b"") + b".wh." + base
        kind = chance.randrange(7)
        if kind == 0:
            writer.add(Entry(mark), iter([]))
        elif name in (b"d", b"d/e"):
            writer.add(Entry(name, Type.DIRECTORY, mode=mode, uid=uid, xattrs=xattrs), iter([]))
            if kind == 1:
                writer.add(Entry(name + b"/.wh..wh..opq"), iter([]))
        elif kind == 1:
            target = chance.choice([b"x", b"y"])
            writer.add(Entry(name, Type.SYMLINK, linkname=target, mtime_ns=times), iter([]))
        elif kind == 2:
            writer.add(Entry(name, Type.CHARACTER, devmajor=1, devminor=uid), iter([]))
        elif kind == 3 and files:
            writer.add(Entry(name, Type.HARDLINK, linkname=chance.choice(files)), iter([]))
        else:
            data = chance.choice([b"", b"1", b"22"])
            entry = Entry(name, size=len(data), mode=mode, uid=uid, mtime_ns=times, xattrs=xattrs)
            writer.add(entry, iter([data]))
            files.append(name)
    writer.close()
    return out.getvalue()


@pytest.mark.parametrize("prepared", [False, True])
def test_changes_are_told_without_a_mount_as_by_one(
    driver: ErofsDriver, prepared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, chain = random.Random(5), list[LayerId]()
    while len(chain) < 40:
        id, parent = LayerId(f"layer-{len(chain)}"), chain[-1] if chain else None
        driver.create(id, parent)
        try:
            driver.apply(id, parent, io.BytesIO(_random_layer(chance)))
        except InvalidArchive:  # a link to itself, or through a file
            driver.remove(id)
            continue
        chain.append(id)
        if prepared:
            driver.prepare(id)
    box = LayerId("box")
    driver.create_read_write(box, chain[-1])
    with driver.mounted(box) as root:
        (root / "new").write_text("1")
        shutil.rmtree(root / "d", ignore_errors=True)
        (root / "d").mkdir(exist_ok=True)
        for path in root.iterdir():
            os.utime(path, follow_symlinks=False)
    asked = [(chain[0], None), *_with_parents(chain), (box, chain[-1])]
    expected = [StackingDriver.changes(driver, *one) for one in asked]
    assert sum(map(len, expected)) > 100
    if not prepared:
        for id in chain:
            Path(driver.layout.path(id, "chain")).unlink(missing_ok=True)
    monkeypatch.delattr(erofs, "open_mount")
    assert [driver.changes(*one) for one in asked] == expected


def _with_parents(chain: list[LayerId]) -> Iterator[tuple[LayerId, LayerId]]:
    for below, above in pairwise(chain):
        yield above, below


# -- several at once, and death


def test_two_processes_make_one_chain(make: Make) -> None:
    top = _fill(make(), 40)

    def work() -> None:
        mine = make()
        for _ in range(10):
            with mine.mounted(top) as root:
                assert _holds(root, 40)
            Path(mine.layout.path(top, "chain")).unlink(missing_ok=True)

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3


def test_killed_while_a_layer_is_written_or_the_chain_is_made(make: Make, tmp_path: Path) -> None:
    top = _fill(make(), 3)
    data = tar({f"n{n}": b"y" * 5000 for n in range(20)})

    def work(driver: ErofsDriver) -> None:
        new = LayerId("new")
        driver.create(new, top)
        driver.apply(new, top, io.BytesIO(data))
        with driver.mounted(new):
            pass

    def clear(driver: ErofsDriver) -> None:
        driver.cleanup()
        driver.remove(LayerId("new"))
        for id in driver.ids():
            Path(driver.layout.path(id, "chain")).unlink(missing_ok=True)

    with Fault(0, die) as fault:
        work(make())
    clear(make())
    for point in range(1, fault.count + 1, max(1, fault.count // 25)):

        def killed(point: int = point) -> None:
            driver = make()
            with Fault(point, die):
                work(driver)

        assert in_child(killed) in (-signal.SIGKILL, 0), f"at call {point}"
        driver = make()
        clear(driver)
        work(driver)
        assert set(driver.ids()) == {"layer-0", "layer-1", "layer-2", "new"}
        driver.verify(LayerId("new"))
        clear(driver)
        left = os.listdir(driver.home / "staging")
        assert all(name.startswith(f"{os.getpid()}-") for name in left), f"at call {point}"


# -- damage


@pytest.mark.parametrize("name", ["index", "chain"])
def test_an_index_that_changed_on_disk_is_found(driver: ErofsDriver, name: str) -> None:
    top = _fill(driver, 2)
    with driver.mounted(top):
        pass
    driver.verify(top)
    path = Path(driver.layout.path(top, name))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # with fs-verity it can't be written
    path.write_bytes(data)
    what = "its index (is not what it was|has no fs-verity any more)"
    if name == "chain":
        what = "its merged index is not"
    with pytest.raises(LayerBroken, match=what):
        driver.verify(top)
    if name == "index":
        with pytest.raises(LayerBroken, match=what):
            driver.verify(top, repair=True)
        return
    assert driver.verify(top, repair=True) == ["its merged index is not what it was"]
    assert driver.verify(top) == []
    with driver.mounted(top) as root:
        assert _holds(root, 2)
    assert path.exists()


def test_files_are_read_only(driver: ErofsDriver) -> None:
    below, top = _fill(driver, 2), LayerId("linked")
    driver.create(top, below)
    driver.apply(top, below, io.BytesIO(_hard_link(b"second", b"f0")))
    with driver.mounted(top):
        pass
    for name in ("tar", "index", "beside", "chain"):
        assert Path(driver.layout.path(top, name)).stat().st_mode & 0o777 == 0o444


def test_files_have_fs_verity_where_the_file_system_has_it(
    driver: ErofsDriver, tmp_path: Path
) -> None:
    top = _fill(driver, 1)
    record = Path(driver.layout.path(top, "verity"))
    assert record.exists() == verity.supported(tmp_path)


def test_a_child_that_has_the_files_open_for_a_moment_is_waited_for(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a child has them that another thread forked; if need be on a pretended fs-verity."""
    answers = [errno.ETXTBSY, errno.ETXTBSY, 0, 0]

    def enable(fd: int) -> bool:
        if number := answers.pop(0):
            raise OSError(number, os.strerror(number))
        return True

    monkeypatch.setattr(verity, "enable", enable)
    monkeypatch.setattr(verity, "measure", lambda fd: "sha256:" + "1" * 64)
    top = _fill(driver, 1)
    assert answers == []
    with driver.mounted(top) as root:
        assert _holds(root, 1)


def test_a_file_with_another_digest_is_not_mounted(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen through a kernel that has fs-verity, if need be a pretended one."""
    told = {"sha256": "sha256:" + "1" * 64}
    monkeypatch.setattr(verity, "enable", lambda fd: True)
    monkeypatch.setattr(verity, "measure", lambda fd: told["sha256"])
    top = _fill(driver, 2)
    with driver.mounted(top):
        pass
    told["sha256"] = "sha256:" + "2" * 64
    with pytest.raises(LayerBroken, match="its tar has digest sha256:22"):
        driver.get(top)
    with pytest.raises(LayerBroken, match="has digest"):
        driver.verify(top)
    told["sha256"] = None  # type: ignore[assignment]
    with pytest.raises(LayerBroken, match="has no fs-verity any more"):
        driver.get(top)
    assert mounts_below(driver.home) == []


def test_a_recorded_digest_is_no_hindrance_where_there_is_no_fs_verity(
    driver: ErofsDriver, tmp_path: Path
) -> None:
    if verity.supported(tmp_path):
        pytest.skip("this file system has fs-verity")
    top = _fill(driver, 1)
    assert not sealing.seal(str(Path(driver.layout.path(top, ""))))
    Path(driver.layout.path(top, "verity")).write_text('{"tar": "sha256:00"}')
    with driver.mounted(top) as root:
        assert _holds(root, 1)
    Path(driver.layout.path(top, "tar")).unlink()
    with pytest.raises(LayerBroken, match="its tar is gone"):
        driver.get(top)


# -- very many layers


def _itself(below: Staged | None) -> Staged | None:
    return below


def test_an_index_is_read_once_for_all_layers_above_it(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an image whose layers are unpacked side by side, and ask what lower ones have."""
    read: list[Image] = []
    real = Image.__init__

    def init(self: Image, data: bytes, devices: Sequence[int] = ()) -> None:
        read.append(self)
        real(self, data, devices)

    monkeypatch.setattr(Image, "__init__", init)
    count = 40
    below: Staged | None = None
    with ExitStack() as stack:
        for number in range(count):
            files: Files = {f"d/f{number}": b"1", f"d/.wh.f{number - 20}": b"", ".wh.none": b""}
            content = io.BytesIO(tar(files))
            below = stack.enter_context(driver.stage(content, partial(_itself, below)))
        assert isinstance(below, StagedTar)
        with merged_view([below.layer, *below.below()]) as view:
            assert view.find(b"d/f39") is not None
            assert view.find(b"d/f19") is None, "it is whited out"
            assert view.find(b"none") is None
        with below.layer.image() as top:
            assert {name for name, _ in top.entries(top.root)} == {b"d"}, "it hid nothing"
    assert len(read) <= count
