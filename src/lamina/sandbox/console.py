"""The terminal of a container that an OCI runtime makes: a pseudo-terminal of its own.

The runtime opens it inside and sends us its master (runc, docs/terminals.md); a process copies
between that and the caller's terminal, which is raw meanwhile: what is typed, also Ctrl-C, is
for the command.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lamina.sandbox import child

_SOCKET = "console.sock"
_STDIN, _STDOUT = 0, 1
_CHUNK = 1 << 16


@contextmanager
def kept() -> Iterator[None]:
    """The terminal's modes are what they were, after the block."""
    before = termios.tcgetattr(_STDIN)
    try:
        yield
    finally:
        # From the background, too: the caller may be gone.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)
        except termios.error:
            pass  # the terminal is gone


class Listener:
    """A socket for the runtime to send the master of the container's terminal to.

    A path to a socket is short (unix(7)), ``directory`` need not be: both sides take it by way of
    its descriptor.
    """

    def __init__(self, directory: str) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = f"/proc/{os.getpid()}/fd/{self._directory}/{_SOCKET}"
        self._socket.bind(path)
        self._socket.listen(1)
        self.arguments = ["--console-socket", path]

    def relay(self) -> Relay:
        """Take the master that was sent, and begin to copy."""
        connection, _ = self._socket.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 1 << 12, 1)
        self._socket.close()
        os.close(self._directory)
        return Relay(fds[0])


class Relay:
    """A process that copies between the caller's terminal and the container's."""

    def __init__(self, master: int) -> None:
        _copy_size(master)
        self._pid = os.fork()
        if self._pid == 0:
            _relay(master)
        os.close(master)

    def wait(self) -> None:
        """Until all that the container wrote is copied; nothing holds its terminal any more."""
        try:
            os.waitpid(self._pid, 0)
        except ChildProcessError:
            pass  # whoever waited for the command has reaped this too


def _relay(master: int) -> NoReturn:
    try:
        child.reset_signals([*child.FORWARDED, signal.SIGTTOU])
        signal.signal(signal.SIGWINCH, lambda *_: _copy_size(master))
        tty.setraw(_STDIN, termios.TCSADRAIN)  # what was typed already is not lost
        _copy(master)
    finally:
        os._exit(0)


def _copy(master: int) -> None:
    """Until the last one has closed the container's terminal."""
    sources = {_STDIN: master, master: _STDOUT}
    while True:
        ready, _, _ = select.select(list(sources), [], [])
        for source in ready:
            try:
                data = os.read(source, _CHUNK)
            except OSError:  # EIO, how a terminal says that nobody is at the other end
                data = b""
            if data:
                _write_all(sources[source], data)
            elif source == master:
                return
            else:
                del sources[source]


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _copy_size(master: int) -> None:
    """Make the container's terminal as large as the caller's."""
    try:
        size = fcntl.ioctl(_STDIN, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
    except OSError:
        pass
