from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lamina.errors import (
    AmbiguousName,
    CommandNotFound,
    ContainerNotFound,
    ContainerRunning,
    ImageNotFound,
    InvalidName,
    LaminaError,
    NameInUse,
)
from lamina.oci import RunConfig
from lamina.store import Image, Store
from lamina.store.container import State
from tests.store import children
from tests.store.conftest import MakeStore


@pytest.fixture
def image(store: Store, root_fs: bytes) -> Image:
    return store.import_tar(io.BytesIO(root_fs), "image")


def test_what_is_written_is_listed_as_changes(store: Store, image: Image) -> None:
    with store.container(image) as box:
        (box.root / "etc/motd").write_text("changed")
        (box.root / "etc/new").write_text("new")
        (box.root / "etc/hostname").unlink()
        assert [str(change) for change in box.changes()] == [
            "C /etc",
            "D /etc/hostname",
            "C /etc/motd",
            "A /etc/new",
        ]
        assert box.size() == 10


def test_a_container_ends_with_its_block(store: Store, image: Image) -> None:
    with store.container(image) as box:
        root = box.root
        assert (root / "etc/motd").read_text() == "welcome\n"
    with pytest.raises(LaminaError, match="not mounted"):
        _ = box.root
    with pytest.raises(ContainerNotFound):
        store.open(box.id)
    assert [layer.kind for layer in store.layers] == ["image"]
    assert os.listdir(store.run / "containers") == []


def test_a_kept_container_is_found_again(open_store: MakeStore, image: Image) -> None:
    with open_store().container("image", name="web", keep=True) as box:
        (box.root / "state").write_text("1")
        assert box.state is State.MOUNTED
    other = open_store()
    for ref in ("web", box.id, box.id[:9]):
        found = other.open(ref)
        assert (found.id, found.name, found.state) == (box.id, "web", State.CREATED)
        assert found.image == image
    with other.open("web") as again:
        assert (again.root / "state").read_text() == "1"
    assert other.open("web").kept
    assert [box.name for box in other.containers] == ["web"]


def test_lookups_that_find_nothing_or_too_much(store: Store, image: Image) -> None:
    boxes = [store.container(image, keep=True) for _ in range(17)]
    digits = [box.id[0] for box in boxes]
    twice = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(AmbiguousName):
        store.open(twice)
    for ref in ("", "none", "../x", "%", "a\0"):
        with pytest.raises(ContainerNotFound):
            store.open(ref)
    with pytest.raises(ImageNotFound):
        store.container("nothing")
    for box in boxes:
        box.remove()


@pytest.mark.parametrize("when", ["before the layer is made", "after it"])
@pytest.mark.allow_log("stays for now")
def test_an_image_that_goes_while_a_container_is_made(
    store: Store, image: Image, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    make = store.driver.create_read_write

    def remove_image_and_make(*args: Any, **options: Any) -> None:
        if when == "after it":
            make(*args, **options)
        store.remove_image("image")
        if when != "after it":
            make(*args, **options)

    monkeypatch.setattr(store.driver, "create_read_write", remove_image_and_make)
    with pytest.raises(ImageNotFound):
        store.container(image)
    assert list(store.containers) == []


def test_names_are_unique_and_made_up_if_not_given(store: Store, image: Image) -> None:
    with store.container(image, name="a"):
        before = len(list(store.driver.ids()))
        with pytest.raises(NameInUse):
            store.container(image, name="a")
        with pytest.raises(InvalidName):
            store.container(image, name="../a")
        assert len(list(store.driver.ids())) == before
    with store.container(image) as box:
        assert re.fullmatch("[a-z]+_[a-z]+", box.name)
    assert os.listdir(store.run / "containers") == []


def test_mounts_are_counted(store: Store, image: Image) -> None:
    box = store.container(image, keep=True)
    root = box.mount()
    assert box.mount() == root
    box.unmount()
    assert (root / "etc/motd").exists()
    box.unmount()
    box.unmount()
    assert box.state is State.CREATED
    with store.open(box.id) as again, box.mounted():
        assert again.root == box.root
    box.remove()


def test_a_container_in_use_elsewhere_is_not_removed(store: Store, image: Image) -> None:
    box = store.container(image, keep=True)
    with store.open(box.id):
        for act in (box.remove, box.fork, lambda: box.snapshot("a")):
            with pytest.raises(ContainerRunning):
                act()
        assert box.state is State.MOUNTED
    box.remove()
    with pytest.raises(ContainerNotFound):
        box.mount()
    with pytest.raises(ContainerNotFound):
        box.remove()
    assert os.listdir(store.run / "containers") == []


@pytest.mark.root
def test_a_pinned_container_stays_mounted_without_us(
    open_store: MakeStore, image: Image, driver: str, tmp_path: Path
) -> None:
    code = """
        import sys
        from lamina.store import Store
        with Store(sys.argv[1], run=sys.argv[2], driver=sys.argv[3]) as store:
            print(store.container("image", name="box", keep=True).pin())
    """
    root = Path(children.run(code, tmp_path / "root", tmp_path / "run", driver).strip())
    (root / "etc/motd").write_text("pinned")
    store = open_store()
    box = store.open("box")
    assert str(box.state) == "mounted"
    with pytest.raises(ContainerRunning, match="unmount"):
        box.remove()
    with box:
        assert (box.root / "etc/motd").read_text() == "pinned"
    assert (root / "etc/motd").exists()
    assert box.unpin()
    assert not box.unpin()
    assert str(box.state) == "created"
    box.pin()
    box.remove(force=True)


def test_the_whole_tree_is_exported(store: Store, image: Image) -> None:
    with store.container(image) as box:
        (box.root / "etc/new").write_text("new")
        (box.root / "etc/motd").unlink()
        with box.export() as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            names = [member.name for member in archive]
    assert [name for name in names if name.startswith("etc/")] == ["etc/hostname", "etc/new"]
    assert "var/data" in names


def test_the_changes_are_a_layer_tar(store: Store, image: Image) -> None:
    with store.container(image) as box:
        (box.root / "etc/motd").unlink()
        with box.diff() as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            assert "etc/.wh.motd" in [member.name for member in archive]


@pytest.mark.root
def test_a_directory_is_a_base(store: Store, driver: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "etc").mkdir(parents=True)
    (base / "etc/a").write_text("a")
    with store.container(base) as box:
        (box.root / "etc/a").write_text("b")
        (box.root / "etc/c").write_text("c")
        assert [str(change) for change in box.changes()] == ["C /etc", "C /etc/a", "A /etc/c"]
        box.snapshot("one")
        (box.root / "etc/d").write_text("d")
        assert [str(change) for change in box.changes()][-1] == "A /etc/d"
        box.rollback("one")
        assert sorted(os.listdir(box.root / "etc")) == ["a", "c"]
        assert (box.base, box.image) == (base, None)
    assert (base / "etc/a").read_text() == "a"
    assert not list(store.layers)
    assert not list(store.driver.ids())
    with pytest.raises(InvalidName, match="not a directory"):
        store.container(base / "etc/a")


@pytest.mark.root
def test_the_machine_itself_is_a_base(tmp_path: Path) -> None:
    with (
        Store(tmp_path / "root", run=tmp_path / "run", driver="overlay") as store,
        store.container(Path("/"), volatile=True) as box,
    ):
        assert (box.root / "etc/passwd").read_bytes() == Path("/etc/passwd").read_bytes()
        (box.root / "etc/motd-of-a-fork").write_text("x")
        assert "A /etc/motd-of-a-fork" in map(str, box.changes())
        assert not Path("/etc/motd-of-a-fork").exists()
        assert box.commit("kept").size == 1
        with pytest.raises(LaminaError, match="frozen layer over /"):
            box.fork()
        assert (box.root / "etc/motd-of-a-fork").exists()
        assert store.check() == []


# -- running: a runner of the tests' own, chroot and nothing else


class _Chroot(Store):
    calls: ClassVar[list[dict[str, Any]]] = []

    @staticmethod
    def _runner(
        root: Path, argv: Sequence[str], *, stdout: int | None = None, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        _Chroot.calls.append(options)
        return subprocess.run(argv, cwd="/", stdout=stdout, env={"ROOT": str(root)}, check=False)


@pytest.fixture
def runs(image: Image, store: Store, driver: str) -> _Chroot:
    _Chroot.calls.clear()
    return _Chroot(store.root, run=store.run, driver=driver)


def test_a_store_alone_runs_nothing(store: Store, image: Image) -> None:
    with store.container(image) as box, pytest.raises(LaminaError, match=r"use lamina\.Store"):
        box.run(["true"])


def test_a_command_runs_with_what_the_image_says(runs: _Chroot, root_fs: bytes) -> None:
    config = RunConfig(env=["A=1", "B=2"], working_dir="/srv", user="nobody")
    image = runs.import_tar(io.BytesIO(root_fs), config=config)
    with runs.container(image) as box:
        done = box.run(["sh", "-c", "echo $ROOT"], env={"B": "3"}, capture=True)
        assert done.stdout.decode().strip() == str(box.root)
    (call,) = runs.calls
    assert call["env"] == {"A": "1", "B": "3"}
    assert (call["cwd"], call["user"], call["network"]) == ("/srv", "nobody", "host")
    runs.close()


def test_the_state_follows_the_command(runs: _Chroot) -> None:
    box = runs.container("image", keep=True)
    assert box.state is State.CREATED
    with pytest.raises(subprocess.CalledProcessError):
        box.run(["sh", "-c", "exit 3"])
    assert (box.state, box.exit_code) == (State.EXITED, 3)
    box.run(["false"], check=False)
    assert box.exit_code == 1
    box.remove()
    runs.close()


def test_the_state_after_an_end_that_nobody_saw(runs: _Chroot) -> None:
    box = runs.container("image", keep=True)
    box.run(["sh", "-c", "exit 3"], check=False)

    def interrupted(*_: Any, **__: Any) -> subprocess.CompletedProcess[bytes]:
        raise KeyboardInterrupt

    box._core.runner = interrupted
    with pytest.raises(KeyboardInterrupt):
        box.run(["x"])
    assert (box.state, box.exit_code) == (State.EXITED, None)
    box.remove()
    runs.close()


def test_the_state_after_a_command_that_is_not_there(runs: _Chroot) -> None:
    box = runs.container("image", keep=True)

    def missing(*_: Any, **__: Any) -> subprocess.CompletedProcess[bytes]:
        raise CommandNotFound("x: command not found", 127)

    box._core.runner = missing
    with pytest.raises(CommandNotFound):
        box.run(["x"])
    assert (box.state, box.exit_code) == (State.EXITED, 127)
    box.remove()
    runs.close()


def test_a_running_container_is_left_alone(
    runs: _Chroot, open_store: MakeStore, tmp_path: Path
) -> None:
    box = runs.container("image", keep=True)
    other = open_store().open(box.id)
    seen: list[State] = []

    def look(*_: Any, **__: Any) -> subprocess.CompletedProcess[bytes]:
        seen.append(other.state)
        for one in (box, other):
            with pytest.raises(ContainerRunning):
                one.fork()
        return subprocess.CompletedProcess([], 0)

    box._core.runner = look
    box.run(["x"])
    assert seen == [State.RUNNING]
    box.remove()
    runs.close()


# -- processes that die


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_killed_process_had_mounted_is_unmounted(
    open_store: MakeStore, image: Image, driver: str, tmp_path: Path, keep: bool
) -> None:
    code = """
        import signal, sys
        from lamina.store import Store
        store = Store(sys.argv[1], run=sys.argv[2], driver=sys.argv[3])
        box = store.container("image", name="box", keep=sys.argv[4] == "True")
        print(box.mount(), flush=True)
        signal.pause()
    """
    child = children.start(
        code, tmp_path / "root", tmp_path / "run", driver, keep, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    root = Path(child.stdout.readline().decode().strip())
    assert open_store().open("box").state is State.MOUNTED, "alive: left alone"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    store = open_store()
    if driver == "overlay":
        assert not os.path.ismount(root)
    if keep:
        assert store.open("box").state is State.CREATED
        with store.open("box") as box:
            assert (box.root / "etc/motd").exists()
    else:
        assert list(store.containers) == []
        assert [layer.kind for layer in store.layers] == ["image"]
    assert os.listdir(tmp_path / "run/containers") == []
