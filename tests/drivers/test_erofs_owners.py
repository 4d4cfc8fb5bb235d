"""Owners of layers that are tars: mapped by their mounts, once, whichever way they are mounted."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.archive import acl
from lamina.archive.erofs import format as f
from lamina.archive.tar import Entry, TarWriter, Type
from lamina.drivers.erofs import ErofsDriver
from lamina.drivers.overlay import OverlayDriver
from lamina.drivers.registry import choose_for
from lamina.errors import DriverUnsupported, MountError, UnmappedId
from lamina.kernel import erofs, userns, verity
from lamina.kernel.idmap import IdMap, IdRange
from lamina.kernel.mountinfo import mounts_below
from lamina.types import LayerId
from tests import leaks
from tests.conformance.trees import facts
from tests.support import need_filesystem

pytestmark = pytest.mark.root

Make = Callable[..., ErofsDriver]
IDMAP = IdMap((IdRange(0, 100_000, 65_536),), (IdRange(0, 300_000, 65_536),))
BASE, MIDDLE, TOP, BOX = (LayerId(name) for name in ("base", "middle", "top", "box"))


@contextmanager
def _drivers(place: Path) -> Iterator[Make]:
    made: list[ErofsDriver] = []

    def make(idmap: IdMap = IDMAP) -> ErofsDriver:
        made.append(ErofsDriver(place / "erofs", place / "run", idmap=idmap))
        return made[-1]

    yield make
    for driver in made:
        driver.cleanup()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    need_filesystem("erofs")
    ErofsDriver.probe(tmp_path, idmap=IDMAP)
    with _drivers(tmp_path) as make:
        yield make


@pytest.fixture
def driver(make: Make) -> ErofsDriver:
    return make()


def _tar(*entries: Entry) -> io.BytesIO:
    out = io.BytesIO()
    writer = TarWriter(out)
    for entry in entries:
        writer.add(entry, iter([b"x" * entry.size]))
    writer.close()
    out.seek(0)
    return out


def _file(name: bytes, owner: int, **more: object) -> Entry:
    return Entry(name, uid=owner, gid=owner + 1, size=600, **more)  # type: ignore[arg-type]


def _link(name: bytes, target: bytes) -> Entry:
    return Entry(name, Type.HARDLINK, linkname=target)


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, int], Entry]:
    """Files of which it is said that EROFS has no place for them: their layers are directories."""
    monkeypatch.setattr(f, "XATTR_VALUE_MAX", 100)
    return lambda name, owner: _file(name, owner, xattrs={"trusted.large": bytes(101)})


def _apply(driver: ErofsDriver | OverlayDriver, id: LayerId, *entries: Entry) -> LayerId:
    """One more layer on the one that was made last."""
    layers = [each for each in (TOP, MIDDLE, BASE) if driver.exists(each)]
    parent = layers[0] if layers else None
    driver.create(id, parent)
    driver.apply(id, parent, _tar(*entries))
    return id


def _fill(driver: ErofsDriver | OverlayDriver) -> None:
    """Three layers in which owners come by every way there is."""
    top = Entry(b"./", Type.DIRECTORY, mode=0o751, uid=7, gid=8)
    directory = Entry(b"d", Type.DIRECTORY, mode=0o755, uid=9, gid=10)
    other = Entry(b"e", Type.DIRECTORY, mode=0o755, uid=3, gid=3)
    _apply(
        driver, BASE, top, directory, other, _file(b"d/a", 11), _file(b"e/f", 12), _file(b"g", 4)
    )
    opaque = Entry(b"e/.wh..wh..opq")
    _apply(driver, MIDDLE, other, opaque, _file(b"e/new", 13), _link(b"second", b"d/a"))
    _apply(driver, TOP, _file(b"d/implied", 14), Entry(b".wh.g"), _link(b"third", b"second"))


SHOWN = {
    "": (7, 8), "d": (9, 10), "d/a": (11, 12), "d/implied": (14, 15), "e": (3, 3),
    "e/new": (13, 14), "second": (11, 12), "third": (11, 12),
}  # fmt: skip


def _owners(root: Path) -> dict[str, tuple[int, int]]:
    """Whose a tree's files are, in ids inside."""
    return {
        "" if path == root else str(path.relative_to(root)): (
            path.lstat().st_uid - 100_000,
            path.lstat().st_gid - 300_000,
        )
        for path in (root, *root.rglob("*"))
    }


def _children() -> str:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


def _namespaces() -> list[str]:
    """The user namespaces that this process has open."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except FileNotFoundError:
            pass
    return [target for target in found if target.startswith("user:")]


# -- each way of mounting


def test_an_image_and_a_container_are_as_with_overlay(driver: ErofsDriver, tmp_path: Path) -> None:
    _fill(driver)
    other = OverlayDriver(tmp_path / "overlay", tmp_path / "other", idmap=IDMAP)
    _fill(other)
    for each in (driver, other):
        each.create_read_write(BOX, TOP)
    for id in (BASE, MIDDLE, TOP, BOX):
        with driver.mounted(id) as root, other.mounted(id) as expected:
            assert facts(root) == facts(expected)
            assert _owners(root)[""] == (7, 8)
            assert root.stat().st_mode == expected.stat().st_mode
    other.cleanup()


@pytest.mark.parametrize("way", ["too many devices", "the kernel refuses"])
def test_layers_mounted_one_by_one(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "too many devices":
        monkeypatch.setattr(f, "DEVICES_MAX", 2)
    else:
        real = erofs.open_mount

        def few(index: str, devices: list[str], *, label: str) -> int:
            if index.endswith("chain"):
                raise MountError(28, "erofs", index)
            return real(index, devices, label=label)

        monkeypatch.setattr(erofs, "open_mount", few)
    _fill(driver)
    driver.create_read_write(BOX, TOP)
    for id in (TOP, BOX):
        with driver.mounted(id) as root:
            assert _owners(root) == SHOWN


def test_loop_devices(driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    real = erofs.open_mount
    monkeypatch.setattr(
        erofs, "open_mount", lambda *args, **options: real(*args, use_loop=True, **options)
    )
    _fill(driver)
    with driver.mounted(TOP) as root:
        assert _owners(root) == SHOWN
    assert leaks.Snapshot.take(str(driver.home)).loops == set()


def test_layers_that_are_sealed(driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen through a kernel that has fs-verity, if need be a pretended one."""
    monkeypatch.setattr(verity, "enable", lambda fd: True)
    monkeypatch.setattr(verity, "measure", lambda fd: "sha256:" + "1" * 64)
    _fill(driver)
    assert Path(driver.layout.path(TOP, "verity")).exists()
    with driver.mounted(TOP) as root:
        assert _owners(root) == SHOWN
    assert driver.verify(TOP) == []


def test_directories_among_tars_are_mapped_once(
    driver: ErofsDriver, no_index: Callable[[bytes, int], Entry]
) -> None:
    _apply(driver, BASE, _file(b"a", 1), _file(b"b", 2))
    _apply(driver, MIDDLE, no_index(b"c", 3), _link(b"d", b"a"))
    _apply(driver, TOP, _file(b"e", 4), _link(b"f", b"c"), _link(b"g", b"b"))
    assert "Tar" in driver.metadata(BASE)
    assert "UpperDir" in driver.metadata(MIDDLE)
    expected = {"": (0, 0), "a": (1, 2), "b": (2, 3), "c": (3, 4), "d": (1, 2)}
    with driver.mounted(MIDDLE) as root:
        assert _owners(root) == expected
    expected |= {"e": (4, 5), "f": (3, 4), "g": (2, 3)}
    driver.create_read_write(BOX, TOP)
    for id in (TOP, BOX):
        with driver.mounted(id) as root:
            assert _owners(root) == expected
    with driver.diff(BOX, None) as stream:
        whole = stream.read()
    copy = LayerId("copy")
    driver.create(copy)
    driver.apply(copy, None, io.BytesIO(whole))
    with driver.mounted(copy) as root:
        assert _owners(root) == expected


def test_a_tar_over_what_was_committed_of_a_container(driver: ErofsDriver) -> None:
    """A directory that was written through a mount, below a tar."""
    _apply(driver, BASE, _file(b"a", 1))
    driver.create_read_write(BOX, BASE)
    with driver.mounted(BOX) as root:
        (root / "a").write_text("copied up")
        (root / "mine").touch()
        os.chown(root / "mine", 100_005, 300_006)
    driver.create(TOP, BOX)
    driver.apply(TOP, BOX, _tar(_link(b"b", b"a"), _link(b"c", b"mine"), _file(b"d", 8)))
    with driver.mounted(TOP) as root:
        assert _owners(root) == {
            "": (0, 0), "a": (1, 2), "b": (1, 2), "mine": (5, 6), "c": (5, 6), "d": (8, 9),
        }  # fmt: skip


def test_layers_staged_side_by_side(
    driver: ErofsDriver, no_index: Callable[[bytes, int], Entry]
) -> None:
    """A directory that stands on a tar which is not placed yet."""
    driver.create(BASE)
    driver.create(MIDDLE, BASE)
    with (
        driver.stage(_tar(_file(b"a", 1)), lambda: None) as below,
        driver.stage(_tar(no_index(b"c", 3), _link(b"d", b"a")), lambda: below) as above,
    ):
        driver.remove(MIDDLE)
        driver.place(BASE, None, below)
        driver.create(MIDDLE, BASE)
        driver.place(MIDDLE, BASE, above)
    with driver.mounted(MIDDLE) as root:
        assert _owners(root) == {"": (0, 0), "a": (1, 2), "c": (3, 4), "d": (1, 2)}


def test_a_merged_index_is_the_same_with_any_map(make: Make, tmp_path: Path) -> None:
    one, plain = make(), make(IdMap())
    _fill(one)
    with one.mounted(TOP) as root:
        assert _owners(root) == SHOWN
    chain = Path(one.layout.path(TOP, "chain"))
    first = (chain.stat().st_ino, chain.read_bytes())
    with plain.mounted(TOP) as root:
        assert (root / "d/a").stat().st_uid == 11
    assert (chain.stat().st_ino, chain.read_bytes()) == first
    assert plain.verify(TOP) == []
    ranges = (IdRange(0, 900_000, 100),)
    with make(IdMap(ranges, ranges)).mounted(TOP) as root:
        assert (root / "d/a").stat().st_uid == 900_011


def test_an_attribute_that_is_left_out_is_told_once(
    driver: ErofsDriver, caplog: pytest.LogCaptureFixture
) -> None:
    xattrs = {"security.selinux": b"label", "user.note": b"kept"}
    _apply(driver, BASE, _file(b"a", 1, xattrs=xattrs))
    assert caplog.text.count("security.selinux is left out") <= 1
    with driver.mounted(BASE) as root:
        assert os.listxattr(root / "a") == ["user.note"]


def test_an_owner_that_has_no_place_leaves_nothing(driver: ErofsDriver) -> None:
    driver.create(BASE)
    with pytest.raises(UnmappedId, match="user id 65536 has no place") as caught:
        driver.apply(BASE, None, _tar(_file(b"a", 1), _file(b"far", 65_536)))
    assert caught.value.__notes__ == ["entry b'far'"]
    assert os.listdir(driver.layout.path(BASE, "")) == ["diff"]
    assert os.listdir(driver.layout.path(BASE, "diff")) == []
    [own] = [name for name in os.listdir(driver.home / "staging") if not name.endswith(".lock")]
    assert os.listdir(driver.home / "staging" / own) == []


# -- the namespace


def test_one_namespace_is_opened_when_it_is_needed(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = _children()  # fixtures of the session have some
    opened = []
    real = userns.open_user_namespace

    def open_user_namespace(idmap: IdMap) -> int:
        opened.append(idmap)
        return real(idmap)

    monkeypatch.setattr(userns, "open_user_namespace", open_user_namespace)
    before = _namespaces()
    _fill(driver)
    driver.create_read_write(BOX, TOP)
    for id in (BASE, MIDDLE, TOP, BOX):
        with driver.mounted(id):
            pass
    assert opened == [IDMAP]
    [mine] = set(_namespaces()) - set(before)
    assert not any(
        os.get_inheritable(int(fd.name))
        for fd in Path("/proc/self/fd").iterdir()
        if fd.exists() and os.readlink(fd) == mine
    )
    assert _children() == children
    driver.close()
    assert _namespaces() == before
    with driver.mounted(TOP) as root:
        assert _owners(root) == SHOWN
    assert len(opened) == 2
    driver.cleanup()
    assert _namespaces() == before


def test_a_driver_that_is_forgotten_keeps_no_namespace(make: Make, tmp_path: Path) -> None:
    before = _namespaces()
    _fill(make())
    forgotten = ErofsDriver(tmp_path / "erofs", tmp_path / "run", idmap=IDMAP)
    with forgotten.mounted(TOP):
        assert len(_namespaces()) == len(before) + 1
    del forgotten
    assert _namespaces() == before


def test_many_threads_need_it_at_once_while_others_close(driver: ErofsDriver) -> None:
    before = _namespaces()
    _fill(driver)
    boxes = [LayerId(f"box-{number}") for number in range(8)]
    start = threading.Barrier(len(boxes))

    def work(box: LayerId) -> dict[str, tuple[int, int]]:
        start.wait()
        for _ in range(3):
            driver.create_read_write(box, TOP)
            with driver.mounted(box) as root:
                found = _owners(root)
            driver.remove(box)
            driver._owners.close()
        return found

    with ThreadPoolExecutor(len(boxes)) as pool:
        assert list(pool.map(work, boxes)) == [SHOWN] * len(boxes)
    driver.close()
    assert _namespaces() == before


def test_a_forked_child_mounts_too(driver: ErofsDriver) -> None:
    """Also when the fork came while a thread had the lock of the namespace."""
    _fill(driver)
    with driver.mounted(TOP):
        pass
    with driver._owners._mutex:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with driver.mounted(TOP) as root:
                    status = int(_owners(root) != SHOWN)
                driver.cleanup()
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with driver.mounted(TOP) as root:
        assert _owners(root) == SHOWN


# -- where it can't be had


def _without_unshare(patch: pytest.MonkeyPatch) -> str:
    patch.setenv("PATH", "/nowhere")
    return r"make a user namespace for the owners: No such file .*: unshare\(1\)"


def _without_namespaces(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(userns, "_COMMAND", ("false",))
    return "make a user namespace for the owners: Operation not permitted"


def _without_idmapped_mounts(patch: pytest.MonkeyPatch) -> str:
    def refuse(fd: int, namespace: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    patch.setattr(userns, "idmap_mount", refuse)
    return "map the owners: Invalid argument"


def _without_ids_in_acls(patch: pytest.MonkeyPatch) -> str:
    """As an overlay of Linux 6.1 shows them: scripts/verity-kernel has one."""
    shown = acl.parse("u::rw-,u:0:r--,g::r--,m::r--,o::r--")
    patch.setattr(os, "getxattr", lambda *_, **__: shown)
    return "overlayfs does not map the ids in ACLs"


@pytest.mark.parametrize(
    "lack",
    [_without_unshare, _without_namespaces, _without_idmapped_mounts, _without_ids_in_acls],
)
def test_what_is_missing_is_told_and_auto_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: Callable[[pytest.MonkeyPatch], str]
) -> None:
    need_filesystem("erofs")
    assert choose_for(tmp_path, IDMAP) == "erofs"
    why = lack(monkeypatch)
    with pytest.raises(DriverUnsupported, match=f"other owners here: .*{why}"):
        ErofsDriver.probe(tmp_path, idmap=IDMAP)
    assert choose_for(tmp_path, IDMAP) == "overlay"
    assert choose_for(tmp_path) == "erofs"
    assert list(tmp_path.iterdir()) == []


def test_a_mount_that_can_not_be_mapped_is_none(
    driver: ErofsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(driver)
    _without_idmapped_mounts(monkeypatch)
    with pytest.raises(MountError, match="map the owners"):
        driver.get(TOP)
    assert mounts_below(driver.home) == []
