from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from lamina.kernel import _syscall


def test_a_symbol_of_libc_and_a_number_do_the_same() -> None:
    assert _syscall.function("getpid", None)() == os.getpid()
    if os.uname().machine == "x86_64":
        assert _syscall.function("no_such_symbol", 39)() == os.getpid()


def test_no_symbol_and_no_number() -> None:
    with pytest.raises(AttributeError):
        _syscall.function("no_such_symbol", None)


@pytest.mark.parametrize("path", [b"/nowhere/\xff", "/nowhere", Path("/nowhere")])
def test_check_raises_with_errno_and_path(path: _syscall.AnyPath) -> None:
    ctypes.set_errno(errno.ENOENT)
    with pytest.raises(FileNotFoundError) as caught:
        _syscall.check(-1, path)
    assert caught.value.filename == os.fsdecode(path)
    assert _syscall.check(3, path) == 3


def test_check_without_a_path() -> None:
    ctypes.set_errno(errno.EPERM)
    with pytest.raises(PermissionError) as caught:
        _syscall.check(-1)
    assert caught.value.filename is None


def test_encode_refuses_what_c_would_cut() -> None:
    assert _syscall.encode(Path("/a\udcff")) == b"/a\xff"
    with pytest.raises(ValueError, match="null"):
        _syscall.encode("a\0b")
