"""renameat2(2)."""

from __future__ import annotations

from lamina.kernel._syscall import (
    AT_FDCWD,
    AnyPath,
    c_char_p,
    c_int,
    c_uint,
    check,
    encode,
    function,
)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_renameat2 = function("renameat2", None, c_int, c_char_p, c_int, c_char_p, c_uint)


def renameat2(
    old: AnyPath,
    new: AnyPath,
    flags: int = 0,
    *,
    old_dir_fd: int = AT_FDCWD,
    new_dir_fd: int = AT_FDCWD,
) -> None:
    """renameat2(2). EINVAL where the file system does not know ``flags``."""
    check(_renameat2(old_dir_fd, encode(old), new_dir_fd, encode(new), flags), old)


def exchange(one: AnyPath, other: AnyPath) -> None:
    """Let two paths of one file system trade places at once."""
    renameat2(one, other, RENAME_EXCHANGE)
