"""The one thing a fresh network namespace needs: its loopback interface up."""

from __future__ import annotations

import fcntl
import os
import struct

from lamina.kernel import _syscall
from lamina.kernel._syscall import c_int, check

AF_INET = 2
SOCK_DGRAM = 2
SOCK_CLOEXEC = os.O_CLOEXEC
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFF_RUNNING = 0x40
_IFREQ = struct.Struct("16sh22x")

# The socket module would do, at five times the cost of the call.
_socket = _syscall.function("socket", None, c_int, c_int, c_int)


def loopback_up() -> None:
    """Bring ``lo`` up in this network namespace; netdevice(7). Needs CAP_NET_ADMIN in it."""
    fd = check(_socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0))
    try:
        fcntl.ioctl(fd, SIOCSIFFLAGS, _IFREQ.pack(b"lo", IFF_UP | IFF_RUNNING))
    finally:
        os.close(fd)
