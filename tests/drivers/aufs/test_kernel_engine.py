"""What the kernel is told, call by call: a recorder stands at the seam to kernel/.

The unions themselves are tested where the kernel has aufs, by the conformance suite.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from lamina.drivers.aufs import engines
from lamina.drivers.aufs.engines import KernelEngine, Union, mount_data
from lamina.errors import MountError

FIXED = "dio,xino=/dev/shm/aufs.xino"
Call = tuple[object, ...]


class Recorder:
    """Stands for lamina.kernel.mount; ``fail`` is the number of the mount(2) that is refused."""

    MS_REMOUNT = 32

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.fail: int | None = None

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        assert len(os.fsencode(data)) < mmap.PAGESIZE
        if self.fail == len(self.calls):
            self.calls.append(("refused", data))
            raise OSError(errno.EINVAL, "Invalid argument", target)
        self.calls.append((source, target, fstype, flags, data))

    def umount2(self, target: str, flags: int = 0) -> None:
        self.calls.append(("umount", target))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(engines, "mount", recorder)
    monkeypatch.setattr(engines, "dirperm1", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    return recorder


def branches_of(data: str) -> list[str]:
    """The branches of a first mount's options, in order."""
    head = data.removeprefix("br:").split(",")[0]
    return head.split(":")


@pytest.mark.parametrize("dirperm", [False, True])
@pytest.mark.parametrize("label", ["", "system_u:object_r:container_file_t:s0:c1,c2"])
@pytest.mark.parametrize("count", [1, 42, 127, 500])
def test_the_first_mount_fills_a_page_and_the_rest_is_appended(
    count: int, label: str, dirperm: bool
) -> None:
    below = [f"/var/lib/docker/aufs/diff/{number:064x}" for number in range(count)]
    data, rest = mount_data("/var/lib/docker/aufs/diff/rw", below, label, dirperm=dirperm)
    options = FIXED + ",dirperm1" * dirperm
    branches = ["/var/lib/docker/aufs/diff/rw=rw", *(f"{path}=ro+wh" for path in below)]
    fitting = count - len(rest)
    context = f',context="{label}"' if label else ""
    assert data == f"br:{':'.join(branches[: fitting + 1])},{options}{context}"
    assert rest == below[fitting:]
    assert len(data) < mmap.PAGESIZE
    if rest:
        # Docker's sum: one branch more would not have fitted.
        room = mmap.PAGESIZE - len(label) - 54 - len(",dirperm1") * dirperm
        assert len(f"br:{':'.join(branches[: fitting + 2])}") > room


def test_no_path_length_breaks_the_page() -> None:
    for length in range(1, 4096):
        below = ["/" + "x" * (length - 1)] * 3
        data, rest = mount_data("/rw", below, "", dirperm=True)
        assert len(data) < mmap.PAGESIZE, length
        assert data.startswith("br:/rw=rw")
        assert branches_of(data)[1:] == [f"{path}=ro+wh" for path in below[: 3 - len(rest)]]


def test_a_writable_branch_that_fills_the_page_alone_is_refused() -> None:
    with pytest.raises(MountError) as caught:
        mount_data("/" + "x" * 4095, [], "", dirperm=False)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_paths_count_in_bytes_not_in_characters() -> None:
    data, rest = mount_data("/rw", ["/" + "é" * 1000] * 3, "", dirperm=False)
    assert len(os.fsencode(data)) < mmap.PAGESIZE
    assert len(rest) == 1, "2,000 bytes each: two fit beside the options, by characters three"


@pytest.mark.parametrize("label", ["", "a:b:c:s0:c1,c2"])
def test_the_calls_and_their_order(kernel: Recorder, label: str) -> None:
    below = [f"/diff/{number:064x}" for number in range(70)]
    KernelEngine().mount(Union("id", "/diff/rw", below, "/mnt/id", label))
    first, *more = kernel.calls
    context = f',context="{label}"' if label else ""
    assert first[:4] == ("none", "/mnt/id", "aufs", 0)
    assert str(first[4]).endswith(f",{FIXED},dirperm1{context}")
    done = len(branches_of(str(first[4]))) - 1
    assert 0 < done < 70
    assert more == [
        ("none", "/mnt/id", "aufs", 32, f"append:{path}=ro+wh{context}") for path in below[done:]
    ]


@pytest.mark.parametrize("fail", [0, 1, 3])
def test_a_mount_that_fails_anywhere_is_undone(kernel: Recorder, fail: int) -> None:
    kernel.fail = fail
    below = [f"/diff/{number:064x}" for number in range(70)]
    with pytest.raises(MountError) as caught:
        KernelEngine().mount(Union("id", "/diff/rw", below, "/mnt/id"))
    assert caught.value.errno == errno.EINVAL
    assert kernel.calls[-2][0] == "refused"
    assert kernel.calls[-1] == ("umount", "/mnt/id")


def test_auplink_flushes_before_the_unmount(
    kernel: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "auplink"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\nexit 1\n')
    tool.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(tool))
    KernelEngine().unmount("/mnt/id", "id")
    assert (tmp_path / "said").read_text() == "/mnt/id flush\n"
    assert kernel.calls == [("umount", "/mnt/id")]


def test_dirperm1_is_found_out_by_one_mount(
    kernel: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    recorder = Recorder()
    monkeypatch.setattr(engines, "mount", recorder)
    engines.dirperm1.cache_clear()
    assert engines.dirperm1()
    assert engines.dirperm1()
    (source, union, fstype, flags, data), unmounted = recorder.calls
    assert (source, fstype, flags) == ("none", "aufs", 0)
    assert str(data).endswith(",dirperm1,xino=/dev/shm/aufs.xino")
    assert unmounted == ("umount", union)
    engines.dirperm1.cache_clear()
    recorder.calls.clear()
    recorder.fail = 0
    assert not engines.dirperm1()
    engines.dirperm1.cache_clear()


@pytest.mark.root
def test_why_the_kernel_engine_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.kernel.filesystems.supported", lambda name: False)
    assert KernelEngine.missing() == "AUFS was not found in /proc/filesystems"
    monkeypatch.setattr("lamina.kernel.filesystems.supported", lambda name: True)
    assert KernelEngine.missing() is None
    monkeypatch.setattr("lamina.kernel.namespaces.in_user_namespace", lambda: True)
    assert KernelEngine.missing() == "AUFS cannot be used in a user namespace"
