from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import MountError
from lamina.kernel import mount, mountinfo


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "target"
    path.mkdir()
    yield path
    while mountinfo.is_mountpoint(path):
        mount.unmount(path, lazy=True)


@pytest.fixture(params=["new", "classic"])
def api(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    if name == "classic":
        monkeypatch.setattr(mount, "_new_api", False)
    elif not mount.has_new_api():
        pytest.skip("no fsopen(2) here")
    return name


def test_importing_costs_no_subprocess_and_no_typing() -> None:
    code = (
        "import sys, lamina.kernel.mount\n"
        "print([m for m in ('subprocess', 'ctypes.util', 'dataclasses', 'typing', 'functools')"
        " if m in sys.modules])"
    )
    source = Path(mount.__file__).parents[2]
    env = {"PYTHONPATH": str(source)}
    out = subprocess.check_output([sys.executable, "-S", "-c", code], env=env, text=True)
    assert out.strip() == "[]"


@pytest.mark.root
def test_mount_and_umount_as_mount2_does(target: Path) -> None:
    mount.mount("here", target, "tmpfs", mount.MS_NOSUID, "size=1m,mode=700")
    point = mountinfo.mount_at(target)
    assert point is not None
    assert (point.source, point.fstype) == (b"here", b"tmpfs")
    assert b"nosuid" in point.options
    assert target.stat().st_mode & 0o777 == 0o700
    mount.umount2(target)
    assert not mountinfo.is_mountpoint(target)


@pytest.mark.root
def test_failures_carry_errno_and_path(target: Path) -> None:
    with pytest.raises(OSError) as caught:
        mount.mount("none", target / "missing", "tmpfs")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(target / "missing")
    with pytest.raises(OSError) as caught:
        mount.unmount(target)
    assert caught.value.errno == errno.EINVAL


def test_a_nul_in_a_path_is_refused(target: Path) -> None:
    with pytest.raises(ValueError, match="null byte"):
        mount.umount2("/nowhere\0/else")


@pytest.mark.root
def test_mount_new_takes_strings_and_flags(target: Path, api: str) -> None:
    mount.mount_new(
        "tmpfs",
        target,
        [("source", "scratch"), ("size", "1m"), ("ro", None)],
        mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOATIME,
    )
    point = mountinfo.mount_at(target)
    assert point is not None
    assert point.source == b"scratch"
    assert b"size=1024k" in point.super_options
    assert {b"nodev", b"noatime"} <= set(point.options.split(b","))
    assert point.read_only


@pytest.mark.root
def test_mount_new_takes_fds(target: Path, tmp_path: Path, api: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    fds = [os.open(tmp_path / name, os.O_PATH | os.O_DIRECTORY) for name in ("a", "b")]
    try:
        if api == "new":
            mount.mount_new("overlay", target, [("lowerdir+", fd) for fd in fds])
            assert sorted(os.listdir(target)) == ["a", "b"]
        else:
            mount.mount_new("overlay", target, [("lowerdir", f"{tmp_path}/a:{tmp_path}/b")])
            assert sorted(os.listdir(target)) == ["a", "b"]
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.root
def test_mount_new_onto_a_directory_fd(target: Path, api: str) -> None:
    fd = os.open(target, os.O_PATH | os.O_DIRECTORY)
    try:
        mount.mount_new("tmpfs", fd)
    finally:
        os.close(fd)
    assert mountinfo.is_mountpoint(target)


@pytest.mark.root
def test_the_error_says_what_the_kernel_said(target: Path, tmp_path: Path) -> None:
    if not mount.has_new_api():
        pytest.skip("no fsopen(2) here")
    with pytest.raises(MountError) as caught:
        mount.mount_new("overlay", target, [("lowerdir", str(tmp_path)), ("nonsense", "1")])
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == str(target)
    assert "nonsense" in " ".join(caught.value.kernel_log)
    assert "nonsense" in str(caught.value)


@pytest.mark.root
def test_an_unknown_file_system_is_enodev(target: Path, api: str) -> None:
    with pytest.raises(MountError) as caught:
        mount.mount_new("nosuchfs", target)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.root
def test_a_failed_mount_leaks_no_fd(target: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for options in ([("lowerdir", "/nonexistent")], [("nonsense", "1")]):
        with pytest.raises(MountError):
            mount.mount_new("overlay", target, options)
    with pytest.raises(MountError):
        mount.mount_new("tmpfs", target / "missing")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
def test_bind_sees_the_same_files(target: Path, tmp_path: Path, api: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    mount.bind(source, target)
    (target / "new").touch()
    assert (source / "new").exists()


@pytest.mark.root
def test_bind_of_a_file_and_by_fd(target: Path, tmp_path: Path, api: str) -> None:
    (tmp_path / "source").write_text("content")
    (target / "file").touch()
    fds = [os.open(path, os.O_PATH) for path in (tmp_path / "source", target / "file")]
    try:
        mount.bind(fds[0], fds[1], read_only=True)
        assert (target / "file").read_text() == "content"
        with pytest.raises(OSError) as caught:
            (target / "file").write_text("other")
        assert caught.value.errno == errno.EROFS
    finally:
        for fd in fds:
            os.close(fd)
        mount.unmount(target / "file")


@pytest.mark.root
def test_a_recursive_read_only_bind_reaches_the_mounts_below(
    target: Path, tmp_path: Path, api: str
) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    mount.mount("none", source / "below", "tmpfs", mount.MS_NOSUID | mount.MS_NOEXEC)
    try:
        mount.bind(source, target, recursive=True, read_only=True)
        for path in (target / "file", target / "below/file"):
            with pytest.raises(OSError) as caught:
                path.touch()
            assert caught.value.errno == errno.EROFS
        below = mountinfo.mount_at(target / "below")
        assert below is not None and b"noexec" in below.options, "other flags stay"
        (source / "below/file").touch()
    finally:
        mount.unmount(target / "below")
        mount.unmount(source / "below")


@pytest.mark.root
def test_ensure_mountpoint_private_is_idempotent(target: Path) -> None:
    mount.ensure_mountpoint_private(target)
    mount.ensure_mountpoint_private(target)
    stacked = [p for p in mountinfo.mounts() if p.target == bytes(target)]
    assert len(stacked) == 1
    assert stacked[0].optional == ()


@pytest.mark.root
def test_lazy_unmount_of_a_busy_mount(target: Path) -> None:
    mount.mount("none", target, "tmpfs")
    with (target / "file").open("w"):
        with pytest.raises(OSError) as caught:
            mount.unmount(target)
        assert caught.value.errno == errno.EBUSY
        mount.unmount(target, lazy=True)
    assert not mountinfo.is_mountpoint(target)


@pytest.mark.root
def test_unmount_does_not_follow_a_symlink(target: Path, tmp_path: Path) -> None:
    mount.mount("none", target, "tmpfs")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OSError):
        mount.unmount(tmp_path / "link")
    assert mountinfo.is_mountpoint(target)


@pytest.mark.root
def test_mount_setattr_makes_read_only_and_back(target: Path) -> None:
    mount.mount("none", target, "tmpfs")
    mount.mount_setattr(target, attr_set=mount.MOUNT_ATTR_RDONLY)
    with pytest.raises(OSError):
        (target / "file").touch()
    mount.mount_setattr(target, attr_clr=mount.MOUNT_ATTR_RDONLY)
    (target / "file").touch()


@pytest.mark.root
def test_fspick_reconfigures(target: Path) -> None:
    mount.mount("none", target, "tmpfs", 0, "size=1m")
    fd = mount.fspick(target)
    try:
        mount.fsconfig_string(fd, "size", "2m")
        mount.fsconfig_reconfigure(fd)
    finally:
        os.close(fd)
    assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize == 2 << 20
