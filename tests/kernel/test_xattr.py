"""Extended attributes, and the two ways of not being able to have them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.kernel import xattr
from lamina.kernel.path import fd_path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"")
    return path


def test_what_is_set_is_read_back_by_path_and_by_descriptor(file: Path) -> None:
    xattr.set(file, "user.bytes", b"\x00\xff")
    xattr.set(str(file), "user.empty", b"")
    with file.open() as opened:
        assert xattr.get(opened.fileno(), "user.bytes") == b"\x00\xff"
        assert xattr.list_all(opened.fileno()) == {"user.bytes": b"\x00\xff", "user.empty": b""}
    assert xattr.list_all(bytes(file)) == {"user.bytes": b"\x00\xff", "user.empty": b""}


def test_a_name_that_is_not_utf8_survives(file: Path) -> None:
    name = os.fsdecode(b"user.\xff")
    xattr.set(file, name, b"v")
    assert xattr.list_all(file) == {name: b"v"}


def test_an_absent_attribute_is_none_and_its_removal_no_error(file: Path) -> None:
    assert xattr.get(file, "user.absent") is None
    xattr.remove(file, "user.absent")
    xattr.set(file, "user.here", b"1")
    xattr.remove(file, "user.here")
    assert xattr.list_all(file) == {}


def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for call in (
        lambda: xattr.get(missing, "user.a"),
        lambda: xattr.set(missing, "user.a", b""),
        lambda: xattr.remove(missing, "user.a"),
        lambda: xattr.list_all(missing),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert caught.value.filename == str(missing)


@pytest.mark.root
def test_a_last_link_is_not_followed(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    xattr.set(link, "trusted.of", b"link")
    assert xattr.get(file, "trusted.of") is None
    fd = os.open(tmp_path, os.O_PATH)
    try:
        assert xattr.list_all(fd_path(fd, b"link")) == {"trusted.of": b"link"}
        assert xattr.list_all(fd_path(fd, b"file")) == {}
    finally:
        os.close(fd)


def test_a_namespace_the_file_system_lacks_is_unsupported(file: Path) -> None:
    with pytest.raises(xattr.XattrUnsupported) as caught:
        xattr.set(file, "nosuchspace.a", b"")
    assert caught.value.errno == errno.ENOTSUP
    assert caught.value.filename == str(file)
    with pytest.raises(xattr.XattrUnsupported):
        xattr.get(file, "nosuchspace.a")


@pytest.mark.root
def test_a_file_system_without_attributes_is_unsupported() -> None:
    with pytest.raises(xattr.XattrUnsupported):
        xattr.set("/proc/self/status", "user.a", b"")


def test_a_file_system_without_attributes_lists_none() -> None:
    assert xattr.list_all("/proc/self/status") == {}


def test_a_user_attribute_on_a_link_is_a_matter_of_permission(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(PermissionError) as caught:
        xattr.set(link, "user.a", b"")
    assert not isinstance(caught.value, xattr.XattrUnsupported)
    assert xattr.get(link, "user.a") is None


@pytest.mark.root
def test_an_ordinary_user_lacks_the_right_to_trusted_attributes(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    code = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from lamina.kernel import xattr\n"
        "os.chdir(sys.argv[1]); os.setuid(65534); open('mine', 'w').close()\n"
        "try: xattr.set('mine', 'trusted.a', b'')\n"
        "except PermissionError as e: print(type(e).__name__, e.errno)\n"
        "print(xattr.probe('.', 'user'), xattr.probe('.', 'trusted'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, *(p for p in sys.path if p)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == f"PermissionError {errno.EPERM}\nTrue False\n"


@pytest.mark.root
def test_probing_asks_the_file_system_and_leaves_nothing(tmp_path: Path) -> None:
    assert xattr.probe(tmp_path, "user")
    assert xattr.probe(tmp_path, "trusted")
    assert not xattr.probe(tmp_path, "nosuchspace")
    assert os.listdir(tmp_path) == []


def test_probing_works_without_unnamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / os.fsdecode(xattr._PROBE_NAME % os.getpid())).write_text("left by a crash")
    real = os.open

    def without_tmpfile(path: bytes, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without_tmpfile)
    assert xattr.probe(tmp_path, "user")
    assert os.listdir(tmp_path) == []
