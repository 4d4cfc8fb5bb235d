"""A terminal to run programs on."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path

from lamina.sandbox import child

SOURCE = str(Path(child.__file__).parents[2])


class Terminal:
    """A program run on a terminal of its own, as its session's leader."""

    def __init__(self, code: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(
                sys.executable,
                [sys.executable, "-c", code],
                {"PYTHONPATH": SOURCE, "TERM": "xterm"},
            )
        self.output = b""

    def read_until(self, text: bytes, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, self.output
            self.output += os.read(self.fd, 4096)

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)
