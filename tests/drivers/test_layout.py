"""Layer directories appear and vanish whole, and what a crash leaves is swept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamina.drivers.layout import Chain, Layout
from lamina.drivers.vfs import VfsDriver
from lamina.errors import LayerExists
from lamina.types import LayerId

A, B = LayerId("a"), LayerId("b")


@pytest.mark.parametrize(
    "chain",
    [
        Chain(),
        Chain((A,)),
        Chain((A, B)),
        Chain(base=Path("/")),
        Chain((A, B), Path("/with\nnewline/and space")),
    ],
)
def test_a_chain_reads_as_it_was_written(chain: Chain) -> None:
    assert Chain.decode(chain.encode()) == chain


@pytest.mark.parametrize("bad", [b"../x\n", b"a\n\nb\n", b"\xff\n", b"-\n"])
def test_a_garbled_chain_is_refused(bad: bytes) -> None:
    if bad.startswith(b"../"):
        assert Chain.decode(b"a\n/x").layers == (A,)
    with pytest.raises(ValueError):
        Chain.decode(bad)


def commit(layout: Layout, id: LayerId, chain: Chain = Chain()) -> None:  # noqa: B008
    with layout.staging.directory() as staged:
        (Path(staged) / "diff").mkdir()
        layout.commit(staged, id, chain)


@pytest.mark.root
def test_a_group_may_pass_through_to_the_layers(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home", 4711)
    commit(layout, A)
    for path in (layout.home, layout.home / "layers", layout.path(A).rstrip("/")):
        status = os.stat(path)
        assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o710, 0, 4711)
    assert (layout.home / "staging").stat().st_mode & 0o777 == 0o700
    layout.staging.close()


def test_a_second_layer_of_one_id_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home")
    commit(layout, A)
    with pytest.raises(LayerExists):
        commit(layout, A)
    assert list(layout.ids()) == [A]
    layout.staging.close()


def test_a_child_that_a_crash_only_announced_does_not_count(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home")
    commit(layout, A)
    children = Path(layout.path(A, "children"))
    children.mkdir()
    (children / "b").touch()
    assert not layout.has_children(A)
    commit(layout, B, Chain((A,)))
    assert layout.has_children(A)
    assert layout.children(A) == [B]
    layout.staging.close()


def test_the_staging_of_a_living_process_is_spared(tmp_path: Path) -> None:
    first = Layout(tmp_path / "home")
    with first.staging.directory() as staged:
        Layout(tmp_path / "home").staging.close()
        assert os.path.isdir(staged)
    first.staging.close()
    assert os.listdir(tmp_path / "home/staging") == []


def test_a_forked_process_stages_in_a_directory_of_its_own(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home")
    with layout.staging.directory():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with layout.staging.directory() as staged:
                    status = int(os.listdir(staged) != [])
                layout.staging.close()
            finally:
                os._exit(status)
        with layout.staging.directory() as staged:
            _, status = os.waitpid(child, 0)
            assert status == 0
            assert os.path.isdir(staged), "the child's end must not delete what its parent stages"
    layout.staging.close()
    assert os.listdir(tmp_path / "home/staging") == []


@pytest.mark.parametrize("number", range(8))
def test_a_process_killed_at_any_time_leaves_whole_layers(tmp_path: Path, number: int) -> None:
    program = f"""
import io, tarfile
from pathlib import Path
from lamina.drivers.vfs import VfsDriver
driver = VfsDriver(Path({str(tmp_path / "home")!r}), Path({str(tmp_path / "run")!r}))
out = io.BytesIO()
with tarfile.open(fileobj=out, mode="w") as archive:
    for i in range(20):
        info = tarfile.TarInfo(f"f{{i}}")
        info.size = 100
        archive.addfile(info, io.BytesIO(b"x" * 100))
print("ready", flush=True)
parent = None
for i in range(10_000):
    id = f"layer{{i % 50}}"
    if driver.exists(id):
        continue
    driver.create(id)
    driver.apply_diff(id, None, io.BytesIO(out.getvalue()))
    driver.create(f"child{{i}}", id)
    driver.remove(f"child{{i}}")
    if i % 3:
        driver.remove(id)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(0.013 * (number + 1))
        finally:
            child.send_signal(signal.SIGKILL)
    driver = VfsDriver(tmp_path / "home", tmp_path / "run")
    for id in sorted(driver.ids()):  # children first
        with driver.mounted(id) as root:
            assert len(os.listdir(root)) in (0, 20), "half a layer"
        driver.create(LayerId("on-top"), id)
        driver.remove(LayerId("on-top"))
        driver.remove(id)
    assert list(driver.ids()) == []
    driver.cleanup()
    assert os.listdir(tmp_path / "home/staging") == []
