"""The seed's promises, on the engine that this machine has."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.drivers.aufs import AufsDriver
from lamina.drivers.aufs import driver as module
from lamina.drivers.aufs.engines import Engine
from lamina.errors import (
    DriverUnsupported,
    InvalidName,
    LayerBroken,
    LayerNotFound,
    OptionUnsupported,
)
from lamina.kernel.idmap import IdMap, IdRange
from lamina.kernel.mountinfo import is_mountpoint, mount_at
from lamina.types import LayerId
from tests import support
from tests.conformance.trees import entry, names_in, tar

pytestmark = pytest.mark.root

A, B, C = LayerId("a"), LayerId("b"), LayerId("c")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    try:
        AufsDriver.probe(tmp_path)
    except DriverUnsupported as error:
        support.missing(str(error))
    return tmp_path / "aufs"


@pytest.fixture
def driver(home: Path, tmp_path: Path) -> Iterator[AufsDriver]:
    made = AufsDriver(home, tmp_path / "run")
    yield made
    made.cleanup()


# -- init ---------------------------------------------------------------------------------


def test_the_home_is_0700_and_private(driver: AufsDriver, home: Path) -> None:
    for path in (home, home / "mnt", home / "diff", home / "layers"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    point = mount_at(home)
    assert point is not None
    assert not [word for word in point.optional if word.startswith(b"shared:")]


def test_the_home_belongs_to_the_mapped_root(home: Path, tmp_path: Path) -> None:
    ids = (IdRange(0, 100_000, 65536),)
    driver = AufsDriver(home, tmp_path / "run", idmap=IdMap(ids, ids))
    driver.create(A)
    driver.apply_diff(A, None, tar(entry("mine", uid=7, gid=9)))
    for path in (home, home / "diff", home / "diff/a", home / "mnt/a"):
        assert (path.stat().st_uid, path.stat().st_gid) == (100_000, 100_000)
    owned = (home / "diff/a/mine").stat()
    assert (owned.st_uid, owned.st_gid) == (100_007, 100_009)
    with driver.diff(A) as stream:
        import tarfile

        with tarfile.open(fileobj=stream, mode="r|") as archive:
            members = {member.name: (member.uid, member.gid) for member in archive}
    assert members["mine"] == (7, 9)
    driver.cleanup()


def test_stale_removals_are_swept_and_what_can_not_be_is_logged(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("mnt", "diff"):
        (home / part / "old-removing/deep").mkdir(parents=True)
        (home / part / "stuck-removing").mkdir()
        (home / part / "kept").mkdir()
    from lamina.kernel.remove import remove_tree as remove

    def refuse(path: str) -> None:
        if "stuck" in path:
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        remove(path)

    monkeypatch.setattr("lamina.drivers.aufs.layout.remove_tree", refuse)
    AufsDriver(home, tmp_path / "run").cleanup()
    for part in ("mnt", "diff"):
        assert sorted(os.listdir(home / part)) == ["kept", "stuck-removing"]
    assert sum("stuck-removing" in r.message for r in caplog.records) == 2
    assert {r.levelno for r in caplog.records} == {logging.ERROR}


def test_the_removal_of_a_living_process_is_not_swept(driver: AufsDriver, home: Path) -> None:
    with driver.layout.staging.directory() as staged:
        assert staged.endswith("-removing")
        driver.layout.sweep()
        assert os.path.isdir(staged)


def test_a_sweep_in_the_moment_before_the_lock_does_no_harm(
    driver: AufsDriver, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir
    swept: list[str] = []

    def mkdir(path: str, *args: int) -> None:
        make(path, *args)
        if path.endswith("-removing") and not swept:
            swept.append(path)
            driver.layout.sweep()

    monkeypatch.setattr(os, "mkdir", mkdir)
    driver.create(A)
    assert swept
    assert driver.exists(A)
    assert os.listdir(home / "diff") == ["a"]


def test_a_link_that_is_called_as_a_removal_is_not_followed(
    driver: AufsDriver, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (home / "diff/x-removing").symlink_to(tmp_path / "mine")
    driver.layout.sweep()
    assert (home / "diff/x-removing").is_symlink()


def test_btrfs_is_refused_as_backing_also_when_the_home_is_not_there(
    btrfs: Path, tmp_path: Path
) -> None:
    for place in (btrfs / "aufs", btrfs / "not/there/aufs", btrfs):
        with pytest.raises(DriverUnsupported, match="not supported over btrfs"):
            AufsDriver(place, tmp_path / "run")
    assert list(btrfs.iterdir()) == []


def test_no_engine_is_an_error_with_both_reasons(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.drivers.aufs.engines import FuseEngine, KernelEngine

    monkeypatch.setattr(KernelEngine, "missing", staticmethod(lambda: "no aufs"))
    monkeypatch.setattr(FuseEngine, "missing", staticmethod(lambda: "no fuse"))
    with pytest.raises(DriverUnsupported, match="kernel: no aufs; fuse: no fuse"):
        AufsDriver(home, tmp_path / "run")
    with pytest.raises(DriverUnsupported, match="no union engine 'zfs'"):
        AufsDriver(home, tmp_path / "run", options={"engine": "zfs"})
    assert not home.exists()


# -- status -------------------------------------------------------------------------------


def test_status_says_what_docker_says_and_the_engine(driver: AufsDriver, home: Path) -> None:
    driver.create(A)
    driver.create(B, A)
    status = dict(driver.status())
    assert list(status)[:4] == ["Root Dir", "Backing Filesystem", "Dirs", "Dirperm1 Supported"]
    assert status["Root Dir"] == str(home)
    assert status["Dirs"] == "2"
    assert status["Union"].startswith(("kernel aufs", "fuse-overlayfs "))


# -- layers -------------------------------------------------------------------------------


def test_a_layers_file_lists_the_parent_and_its_parents(driver: AufsDriver, home: Path) -> None:
    driver.create(A)
    driver.create(B, A)
    driver.create_read_write(C, B)
    assert (home / "layers/a").read_text() == ""
    assert (home / "layers/b").read_text() == "a\n"
    assert (home / "layers/c").read_text() == "b\na\n"
    for part in ("mnt", "diff"):
        assert stat.S_IMODE((home / part / "c").stat().st_mode) == 0o755


def test_storage_options_are_refused(driver: AufsDriver) -> None:
    with pytest.raises(OptionUnsupported):
        driver.create_read_write(A, options={"size": "1G"})
    assert not driver.exists(A)


@pytest.mark.parametrize("bad", ["a:b", "a,b"])
def test_ids_that_mount_options_would_split_are_refused(driver: AufsDriver, bad: str) -> None:
    with pytest.raises(InvalidName):
        driver.create(LayerId(bad))


def test_a_layer_without_parents_is_its_diff_directory(driver: AufsDriver, home: Path) -> None:
    driver.create(A)
    with driver.mounted(A) as root:
        assert root == home / "diff/a"
        assert not is_mountpoint(root)


def test_a_diff_directory_without_its_layers_file_is_no_layer(
    driver: AufsDriver, home: Path
) -> None:
    (home / "diff/stray").mkdir()
    (home / "diff/stray/file").touch()
    stray = LayerId("stray")
    assert not driver.exists(stray)
    with pytest.raises(LayerNotFound):
        driver.get(stray)
    driver.create(stray)
    with driver.mounted(stray) as root:
        assert list(root.iterdir()) == []
    driver.remove(stray)


def test_a_layers_file_without_its_diff_directory_is_broken(driver: AufsDriver, home: Path) -> None:
    driver.create(A)
    driver.create(B, A)
    (home / "diff/b").rmdir()
    with pytest.raises(LayerBroken, match="diff directory is gone"):
        driver.get(B)
    driver.remove(B)
    assert not driver.exists(B)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("missing\n", r"layer missing is broken: .* it is gone"),
        ("b\n", "circle"),
        ("a\na\n", "circle"),
        ("../../etc\n", "damaged"),
        ("a\0\n", "damaged"),
    ],
)
def test_a_layers_file_that_can_not_be_is_named(
    driver: AufsDriver, home: Path, text: str, why: str
) -> None:
    driver.create(A)
    driver.create(B, A)
    (home / "layers/b").write_text(text)
    with pytest.raises(LayerBroken, match=why):
        driver.get(B)
    assert not is_mountpoint(home / "mnt/b")


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_a_layers_file_that_is_no_file_is_named(driver: AufsDriver, home: Path, kind: str) -> None:
    driver.create(A)
    driver.create(B, A)
    path = home / "layers/b"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)  # which opened as a file would wait for a writer
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(LayerBroken, match="no regular file"):
        driver.get(B)
    driver.remove(A)


@pytest.mark.parametrize("lists", ["ba", "cba"])
def test_layers_that_stand_on_each_other_are_named(
    driver: AufsDriver, home: Path, lists: str
) -> None:
    driver.create(A)
    driver.create(B, A)
    driver.create(C, B)
    (home / "layers/a").write_text(f"{lists[0]}\n")  # the lowest on the highest
    for id in lists:
        with pytest.raises(LayerBroken, match="do not agree"):
            driver.get(LayerId(id))
        assert not is_mountpoint(home / "mnt" / id)


def test_a_layer_that_stands_on_itself_can_be_removed(driver: AufsDriver, home: Path) -> None:
    driver.create(A)
    (home / "layers/a").write_text("a\n")
    driver.remove(A)
    assert not driver.exists(A)


# -- mounts -------------------------------------------------------------------------------


def test_removal_retries_while_the_mount_is_busy(
    driver: AufsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.create(A)
    driver.create_read_write(B, A)
    driver.get(B)
    real = driver.engine.unmount
    tries = []

    def busy(target: str, id: str) -> None:
        tries.append(time.monotonic())
        if len(tries) < 6:  # five of Docker's retries, and the last one does it
            raise OSError(errno.EBUSY, "Device or resource busy", target)
        real(target, id)

    monkeypatch.setattr(driver.engine, "unmount", busy)
    driver.remove(B)
    assert len(tries) == 6
    assert all(b - a > 0.09 for a, b in itertools.pairwise(tries))
    assert not driver.exists(B)


def test_a_mount_that_stays_busy_keeps_the_layer(driver: AufsDriver) -> None:
    driver.create(A)
    driver.create_read_write(B, A)
    root = driver.get(B)
    (root / "precious").write_text("x")
    with (root / "open").open("w"), pytest.raises(OSError, match="busy"):
        driver.remove(B)
    assert driver.exists(B)
    driver.remove(B)
    assert not driver.exists(B)


def test_cleanup_unmounts_all_below_mnt_and_then_the_home(driver: AufsDriver, home: Path) -> None:
    driver.create(A)
    for number in range(3):
        driver.create_read_write(LayerId(f"box{number}"), A)
        driver.get(LayerId(f"box{number}"))
    driver.cleanup()
    assert not [m for m in Path("/proc/self/mountinfo").read_text().split() if str(home) in m]


def test_diff_leaves_out_what_aufs_keeps_for_itself(driver: AufsDriver, home: Path) -> None:
    driver.create(A)
    diff = home / "diff/a"
    (diff / ".wh..wh.plnk").mkdir()
    (diff / ".wh..wh.plnk/15.16273").write_text("x")
    (diff / ".wh..wh.orph").mkdir()
    (diff / ".wh..wh.aufs").touch()
    (diff / "dir").mkdir()
    os.link(diff / ".wh..wh.aufs", diff / "dir/.wh..wh..opq")
    os.link(diff / ".wh..wh.aufs", diff / ".wh.gone")
    (diff / "file").write_text("four")
    with driver.diff(A) as stream:
        assert names_in(stream) == [".", ".wh.gone", "dir", "dir/.wh..wh..opq", "file"]
    assert driver.diff_size(A) == 4


# -- the fuse engine ----------------------------------------------------------------------


@pytest.fixture
def fuse(home: Path, tmp_path: Path) -> Iterator[AufsDriver]:
    support.need("fuse-overlayfs")
    made = AufsDriver(home, tmp_path / "run", options={"engine": "fuse"})
    made.create(A)
    made.apply_diff(A, None, tar("gone", "d/", "d/x", "d/y", "e/", ("e/f", b"e")))
    made.create_read_write(B, A)
    yield made
    made.cleanup()


def alter(root: Path) -> None:
    (root / "gone").unlink()
    support.run("rm", "-r", root / "d")
    (root / "d").mkdir()
    (root / "d/new").touch()
    (root / "e/f").write_text("changed")


AUFS_ON_DISK = [".wh.gone", "d", "d/.wh..wh..opq", "d/new", "e", "e/f"]
CHANGES = ["C /d", "A /d/new", "D /d/x", "D /d/y", "C /e", "C /e/f", "D /gone"]


def on_disk(home: Path) -> list[str]:
    """Names in the branch; no mark of another format may be among them."""
    branch = home / "diff/b"
    for path in [branch, *branch.rglob("*")]:
        assert not stat.S_ISCHR(path.lstat().st_mode), f"device left: {path}"
        assert not [x for x in os.listxattr(path) if "overlay" in x], f"xattr left: {path}"
    return sorted(str(path.relative_to(branch)) for path in branch.rglob("*"))


def test_what_fuse_leaves_is_aufs_after_the_last_put(fuse: AufsDriver, home: Path) -> None:
    with fuse.mounted(B) as root:
        alter(root)
        assert [str(c) for c in fuse.changes(B, A)] == CHANGES, "while it is mounted"
        with fuse.diff(B, A) as stream:
            mounted = stream.read()
    assert on_disk(home) == AUFS_ON_DISK
    assert os.listdir(home / "work") == []
    assert [str(c) for c in fuse.changes(B, A)] == CHANGES
    with fuse.diff(B, A) as stream:
        assert stream.read() == mounted


def test_what_a_crash_leaves_is_aufs_at_the_next_mount(fuse: AufsDriver, home: Path) -> None:
    root = fuse.get(B)
    alter(root)
    daemon = _daemon_of(root)
    os.kill(daemon, 9)
    fuse.references.drop(B)
    again = AufsDriver(home, fuse.run, options={"engine": "fuse"})
    assert [str(c) for c in again.changes(B, A)] == CHANGES, "before it is mounted again"
    with again.mounted(B) as root:
        assert sorted(p.name for p in root.iterdir()) == ["d", "e"]
        assert [p.name for p in (root / "d").iterdir()] == ["new"]
    assert on_disk(home) == AUFS_ON_DISK
    again.cleanup()


def _daemon_of(root: Path) -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"fuse-overlayfs" and os.fsencode(root) in words:
            return int(path.parent.name)
    raise AssertionError("no fuse-overlayfs serves the mount")


def test_settling_can_be_interrupted_anywhere(
    fuse: AufsDriver, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.archive import fuseoverlay

    real_unlink, real_strip = os.unlink, fuseoverlay._strip
    root = fuse.get(B)
    alter(root)
    monkeypatch.setattr(fuse.engine, "settle", lambda *_: None)
    fuse.put(B)
    monkeypatch.undo()
    left = [0]

    def stop() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    def unlink(*args: object, **kwargs: object) -> None:
        stop()
        real_unlink(*args, **kwargs)  # type: ignore[arg-type]

    def strip(file: int | bytes) -> None:
        stop()
        real_strip(file)

    monkeypatch.setattr("os.unlink", unlink)
    monkeypatch.setattr(fuseoverlay, "_strip", strip)
    for steps in range(30):
        left[0] = steps
        try:
            fuse.engine.settle(B, str(home / "diff/b"))
        except KeyboardInterrupt:
            assert [str(c) for c in fuse.changes(B, A)] == CHANGES, f"after {steps} steps"
            continue
        break
    monkeypatch.undo()
    assert on_disk(home) == AUFS_ON_DISK


def test_a_branch_of_aufs_reads_the_same_through_fuse(fuse: AufsDriver, home: Path) -> None:
    """As the kernel writes it: whiteouts are hard links to .wh..wh.aufs (reference: aufs.md)."""
    branch = home / "diff/b"
    for name in (".wh..wh.orph", ".wh..wh.plnk"):
        (branch / name).mkdir(mode=0o700)
    (branch / ".wh..wh.aufs").touch(mode=0o444)
    os.link(branch / ".wh..wh.aufs", branch / ".wh.gone")
    (branch / "d").mkdir()
    os.link(branch / ".wh..wh.aufs", branch / "d/.wh..wh..opq")
    (branch / "d/new").touch()
    (branch / "e").mkdir()
    (branch / "e/f").write_text("changed")
    with fuse.mounted(B) as root:
        assert sorted(str(p.relative_to(root)) for p in root.rglob("*")) == [
            "d",
            "d/new",
            "e",
            "e/f",
        ]
        (root / "gone").write_text("back")
    with fuse.mounted(B) as root:
        assert (root / "gone").read_text() == "back"
    assert [str(c) for c in fuse.changes(B, A)] == [
        *CHANGES[:-1],
        "C /gone",
    ]


def test_the_daemon_ends_with_the_mount(fuse: AufsDriver) -> None:
    root = fuse.get(B)
    daemon = _daemon_of(root)
    fuse.put(B)
    assert not Path(f"/proc/{daemon}/cmdline").exists() or not (
        Path(f"/proc/{daemon}/cmdline").read_bytes()
    )


def test_a_union_of_500_branches_with_long_names(fuse: AufsDriver) -> None:
    parent = A
    for number in range(499):
        id = LayerId(f"{number:0150}")
        fuse.create(id, parent)
        parent = id
    fuse.create_read_write(C, parent)
    with fuse.mounted(C) as root:
        assert (root / "gone").exists()


def test_fuse_overlayfs_that_fails_says_why(
    fuse: AufsDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.errors import MountError

    tool = tmp_path / "fuse-overlayfs"
    tool.write_text("#!/bin/sh\necho the reason >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(MountError, match="the reason"):
        fuse.get(B)
    assert not fuse.engine.unsettled(B)
    monkeypatch.undo()
    with fuse.mounted(B) as root:
        assert (root / "gone").exists()


def test_info_says_which_engine_and_why(fuse: AufsDriver) -> None:
    assert isinstance(fuse.engine, Engine)
    assert dict(fuse.status())["Union Chosen"] == "it was asked for"
    assert module.AufsDriver.name == "aufs"


def test_an_ordinary_user_works_with_fuse(ordinary_user, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    support.need("fuse-overlayfs", "fusermount3")
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)  # as udev has it on an ordinary machine
    try:
        said = ordinary_user.says(
            """
import io, os, tarfile
from pathlib import Path
from lamina.drivers.aufs import AufsDriver
home = Path.home() / "aufs"
driver = AufsDriver(home, Path.home() / "run/aufs")
driver.create_read_write("a")
with driver.mounted("a") as root:
    (root / "gone").touch()
    (root / "kept").touch()
driver.create_read_write("b", "a")
with driver.mounted("b") as root:
    (root / "gone").unlink()
    (root / "new").touch()
print([str(c) for c in driver.changes("b", "a")])
print(sorted(os.listdir(home / "diff/b")))
driver.remove("b")
driver.cleanup()
"""
        )
    finally:
        os.chmod("/dev/fuse", mode)
    assert said.splitlines() == ["['D /gone', 'A /new']", "['.wh.gone', 'new']"]


def test_a_tool_of_no_known_version_is_refused(tmp_path: Path, home: Path) -> None:
    tool = tmp_path / "fuse-overlayfs"
    tool.write_text("#!/bin/sh\necho 'fuse-overlayfs: version 0.7'\n")
    tool.chmod(0o755)
    program = (
        "from pathlib import Path\nfrom lamina.drivers.aufs import AufsDriver\n"
        f"AufsDriver(Path({str(home)!r}), Path({str(tmp_path / 'run')!r}),"
        " options={'engine': 'fuse'})"
    )
    import sys

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "fuse-overlayfs is too old (0.7)" in done.stderr
