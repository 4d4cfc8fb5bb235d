"""Verifying layers in a process of its own, while this one makes them.

Both halves are work for the interpreter, of which one process does only one thing at a time. The
other process reads one layer's record a line (JSON) and answers each with a line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Self

import msgspec

from lamina.errors import DigestMismatch, LaminaError, LayerBroken
from lamina.kernel.process import set_parent_death_signal
from lamina.oci.docker import Files, LayerRecord
from lamina.store.adopt.verifying import verify, what_is_wrong

_PROGRAM = "from lamina.store.adopt.verifier import main; main()"


class _Answer(msgspec.Struct):
    size: int = 0
    broken: str | None = None
    """What is wrong with the layer."""
    errno: int = 0
    """Of a failed system call."""
    text: str = ""


class Verifier:
    """Verifies one layer after the other; a context manager. Nothing runs before it is needed."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None
        self._layer: LayerRecord | None = None

    def begin(self, layer: LayerRecord) -> None:
        """Verify a layer from now on; one at a time."""
        if self._layer is not None:
            self._end()  # nobody wants to know of that one any more
        self._layer = layer
        if self._process is None:
            self._process = _start(self._files.fd)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(layer) + b"\n")
        self._process.stdin.flush()

    def finish(self) -> int:
        """Wait for the end of it: bytes of the layer's tar. Raises as verifying.verify."""
        assert self._process is not None and self._process.stdout is not None
        assert self._layer is not None
        line = self._process.stdout.readline()
        if not line:
            raise LaminaError("the process that verifies layers has ended")
        layer, self._layer = self._layer, None
        answer = msgspec.json.decode(line, type=_Answer)
        if answer.errno:
            raise OSError(answer.errno, os.strerror(answer.errno), answer.text)
        if answer.broken is not None:
            raise LayerBroken(layer.chain_id, answer.broken)
        return answer.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        process, self._process, self._layer = self._process, None, None
        if process is not None:
            process.kill()
            with process:
                pass  # closes the pipes, and waits


def _start(fd: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(part for part in sys.path if part)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(fd), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(fd,),
        env={**os.environ, "PYTHONPATH": path},
    )


def _answer(files: Files, line: bytes) -> _Answer:
    try:
        return _Answer(size=verify(files, msgspec.json.decode(line, type=LayerRecord)))
    except (LayerBroken, DigestMismatch) as error:
        return _Answer(broken=what_is_wrong(error))
    except OSError as error:
        name = error.filename
        text = os.fsdecode(name) if isinstance(name, str | bytes) else ""
        return _Answer(errno=error.errno or 5, text=text.encode("utf-8", "replace").decode())


def main() -> None:
    """What the other process does: answer lines of stdin on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asks says when to end
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        return
    files = Files(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(_answer(files, line)) + b"\n")
        sys.stdout.buffer.flush()
