"""open_in_root by openat2 and by steps: the same answers, and never a way out."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.kernel import path as kpath


@pytest.fixture(params=["openat2", "steps"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "steps":
        monkeypatch.setattr(kpath, "_have_openat2", lambda: False)
    elif not kpath._have_openat2():
        pytest.skip("no openat2 here")
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path, engine: str) -> Iterator[int]:
    (tmp_path / "secret").write_text("outside")
    top = tmp_path / "root"
    (top / "a/b").mkdir(parents=True)
    (top / "file").write_text("top")
    (top / "a/b/file").write_text("deep")
    (top / "secret").write_text("inside")
    for name, target in {
        "absolute": "/a/b",
        "relative": "a/b",
        "up": "../../../secret",
        "dangling": "nowhere/yet",
        "new": "made",
        "loop": "loop",
        "self": ".",
        "slash": "/",
        "tofile": "file",
        "trailing": "a/b/",
        "a/back": "../a/./b/..",
    }.items():
        (top / name).symlink_to(target)
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def read(root: int, path: bytes) -> str:
    with os.fdopen(kpath.open_in_root(root, path, os.O_RDONLY)) as file:
        return file.read()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (b"file", "top"),
        (b"/file", "top"),
        (b"//a//b/./file", "deep"),
        (b"absolute/file", "deep"),
        (b"relative/file", "deep"),
        (b"trailing/file", "deep"),
        (b"up", "inside"),
        (b"../../secret", "inside"),
        (b"/../secret", "inside"),
        (b"a/../../secret", "inside"),
        (b"a/b/../../../../secret", "inside"),
        (b"self/self/slash/a/back/b/file", "deep"),
        (b"absolute/../../file", "top"),
        (b"tofile", "top"),
    ],
)
def test_links_and_dots_are_resolved_below_the_root(root: int, path: bytes, content: str) -> None:
    assert read(root, path) == content


@pytest.mark.parametrize(
    ("path", "flags", "code"),
    [
        (b"", os.O_RDONLY, errno.ENOENT),
        (b"missing", os.O_RDONLY, errno.ENOENT),
        (b"missing/file", os.O_RDONLY, errno.ENOENT),
        (b"dangling", os.O_RDONLY, errno.ENOENT),
        (b"dangling", os.O_RDWR | os.O_CREAT, errno.ENOENT),
        (b"file/", os.O_RDONLY, errno.ENOTDIR),
        (b"file/.", os.O_RDONLY, errno.ENOTDIR),
        (b"file/..", os.O_RDONLY, errno.ENOTDIR),
        (b"file/below", os.O_RDONLY, errno.ENOTDIR),
        (b"tofile/", os.O_RDONLY, errno.ENOTDIR),
        (b"loop", os.O_RDONLY, errno.ELOOP),
        (b"loop/file", os.O_RDONLY, errno.ELOOP),
        (b"tofile", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
        (b"file", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        (b"tofile", os.O_RDWR | os.O_CREAT | os.O_EXCL, errno.EEXIST),
        (b"dangling", os.O_RDWR | os.O_CREAT | os.O_EXCL, errno.EEXIST),
        (b"a", os.O_WRONLY, errno.EISDIR),
        (b"n" * 256, os.O_RDONLY, errno.ENAMETOOLONG),
        (b"a/../" * 1000, os.O_RDONLY, errno.ENAMETOOLONG),
    ],
)
def test_failures_carry_the_errno_and_the_path(
    root: int, path: bytes, flags: int, code: int
) -> None:
    with pytest.raises(OSError) as caught:
        kpath.open_in_root(root, path, flags, 0o600)
    assert caught.value.errno == code
    assert os.fsencode(caught.value.filename) == path


def test_a_name_with_nul_is_refused_not_cut_short(root: int) -> None:
    with pytest.raises(ValueError, match="null byte"):
        kpath.open_in_root(root, b"file\0/../../secret", os.O_RDONLY)


def test_a_new_file_is_made_where_a_dangling_link_points_in_the_root(
    root: int, tmp_path: Path
) -> None:
    os.close(kpath.open_in_root(root, b"new", os.O_WRONLY | os.O_CREAT, 0o640))
    assert (tmp_path / "root/made").stat().st_mode & 0o777 == 0o640 & ~_umask()


def test_the_last_link_itself_can_be_opened(root: int) -> None:
    fd = kpath.open_in_root(root, b"a/../absolute", os.O_PATH | os.O_NOFOLLOW)
    try:
        assert os.readlink(b"", dir_fd=fd) == b"/a/b"
    finally:
        os.close(fd)


def test_a_trailing_slash_follows_the_last_link(root: int, tmp_path: Path) -> None:
    fd = kpath.open_in_root(root, b"relative/", os.O_PATH | os.O_NOFOLLOW)
    try:
        assert os.path.samestat(os.fstat(fd), (tmp_path / "root/a/b").stat())
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"/", b".", b"..", b"a/..", b"slash", b"a/b/../../..", b"./"])
def test_the_root_is_its_own_parent(root: int, path: bytes) -> None:
    fd = kpath.open_in_root(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.path.samestat(os.fstat(fd), os.fstat(root))
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("links", "fine"), [(40, True), (41, False)])
def test_forty_links_are_followed_and_no_more(
    root: int, tmp_path: Path, links: int, fine: bool
) -> None:
    chain = tmp_path / "root/chain"
    chain.mkdir()
    (chain / "0").write_text("end")
    for number in range(links):
        (chain / str(number + 1)).symlink_to(str(number))
    path = b"chain/%d" % links
    if fine:
        assert read(root, path) == "end"
        return
    with pytest.raises(OSError) as caught:
        read(root, path)
    assert caught.value.errno == errno.ELOOP


def test_deep_paths_use_a_bounded_number_of_descriptors(root: int, tmp_path: Path) -> None:
    (tmp_path / "root" / ("d/" * 900)).mkdir(parents=True)
    path = b"d/" * 900 + b"../" * 900 + b"file"
    assert read(root, path[:2] * 10 + path[-4 - 30 :]) == "top"
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        read(root, path)  # longer than PATH_MAX
    assert read(root, b"d/" * 700 + b"../" * 700 + b"file") == "top"
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_way_out_while_directories_are_moved_out(root: int, tmp_path: Path) -> None:
    """A directory moved out of the root while ``..`` is resolved in it must not lead outside."""
    top = tmp_path / "root"
    (top / "x/y").mkdir(parents=True)
    stop = threading.Event()

    def mover() -> None:
        while not stop.is_set():
            os.rename(top / "x/y", tmp_path / "y")
            os.rename(tmp_path / "y", top / "x/y")

    thread = threading.Thread(target=mover)
    thread.start()
    seen = set()
    try:
        for _ in range(2000):
            try:
                seen.add(read(root, b"x/y/../../secret"))
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.EAGAIN)
    finally:
        stop.set()
        thread.join()
    assert seen <= {"inside"}


def test_openat2_keeps_to_one_file_system_when_told(root: int, engine: str) -> None:
    if engine == "steps":
        pytest.skip("openat2 itself")
    fd = os.open("/", os.O_PATH)
    try:
        with pytest.raises(OSError) as caught:
            kpath.openat2(fd, b"proc/self", os.O_PATH, resolve=kpath.RESOLVE_NO_XDEV)
    finally:
        os.close(fd)
    assert caught.value.errno == errno.EXDEV


def test_a_descriptor_has_a_path(root: int) -> None:
    assert kpath.fd_path(7) == b"/proc/self/fd/7"
    with open(kpath.fd_path(root, b"file")) as file:
        assert file.read() == "top"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
