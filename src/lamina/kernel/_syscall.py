"""The one way into the kernel: ctypes prototypes, and errno turned into OSError.

A newer call is looked up in libc first and made through syscall(2) by number where libc
does not have it yet. Numbers from 424 on are the same on every architecture Linux has had
since then; older calls that Lamina needs all have a symbol in glibc and musl.

Imports cost time in the helper interpreter that runs each command: this module, and those of
the kernel room that the helper uses, import neither typing nor functools nor dataclasses.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

NR_OPEN_TREE = 428
NR_MOVE_MOUNT = 429
NR_FSOPEN = 430
NR_FSCONFIG = 431
NR_FSMOUNT = 432
NR_FSPICK = 433
NR_OPENAT2 = 437
NR_MOUNT_SETATTR = 442
NR_QUOTACTL_FD = 443
NR_STATMOUNT = 457
NR_LISTMOUNT = 458

c_int = ctypes.c_int
c_uint = ctypes.c_uint
c_long = ctypes.c_long
c_ulong = ctypes.c_ulong
c_size_t = ctypes.c_size_t
c_char_p = ctypes.c_char_p
c_void_p = ctypes.c_void_p

libc = ctypes.CDLL(None, use_errno=True)


def function(name: str, number: int | None, *argtypes: Any) -> Callable[..., int]:
    """The system call ``name`` as a function of ``argtypes`` that returns what the call does.

    Its result goes through :func:`check`. With neither a libc symbol nor a ``number`` this
    raises AttributeError.
    """
    if number is None or hasattr(libc, name):
        found: Callable[..., int] = ctypes.CFUNCTYPE(c_int, *argtypes, use_errno=True)((name, libc))
        return found
    raw = ctypes.CFUNCTYPE(c_long, c_long, *argtypes, use_errno=True)(("syscall", libc))
    return lambda *args: raw(number, *args)


def check(result: int, path: AnyPath | int | None = None) -> int:
    """``result`` of a call, or OSError with errno and ``path`` when it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        name = None if path is None or isinstance(path, int) else os.fsdecode(path)
        raise OSError(number, os.strerror(number), name)
    return result


def encode(path: AnyPath) -> bytes:
    """``path`` as C sees it; ValueError where a NUL would cut it short."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    return raw
