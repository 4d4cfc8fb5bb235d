"""A graph driver plugin of the tests' own: the server as a process, and a client as Docker's is."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

Answer = dict[str, Any]
_PATIENCE = 30  # seconds
_ACCEPT = "application/vnd.docker.plugins.v1.2+json"


class Refused(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket, with the headers that Go sends."""

    def __init__(self, path: Path) -> None:
        super().__init__("", timeout=_PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))

    def post(self, target: str, body: bytes | Iterable[bytes]) -> http.client.HTTPResponse:
        self.putrequest("POST", target, skip_host=True, skip_accept_encoding=True)
        self.putheader("Host", "")
        self.putheader("User-Agent", "Go-http-client/1.1")
        self.putheader("Accept", _ACCEPT)
        if isinstance(body, bytes):
            self.putheader("Content-Length", str(len(body)))
            self.endheaders(body)
        else:
            self.putheader("Transfer-Encoding", "chunked")
            self.endheaders(body, encode_chunked=True)
        return self.getresponse()


class Client:
    """Calls the plugin; each call on a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, method: str, **fields: Any) -> Answer:
        """A method with JSON in and out.

        Raises:
            Refused: with what the answer says.
        """
        body = json.dumps(fields).encode() + b"\n" if fields or "Plugin" not in method else b""
        connection = _Connection(self.path)
        try:
            return _answer(connection.post(f"/{method}", body))
        finally:
            connection.close()

    def apply(self, id: str, parent: str, tar: Iterable[bytes]) -> int:
        """GraphDriver.ApplyDiff, chunked."""
        from urllib.parse import urlencode

        connection = _Connection(self.path)
        query = urlencode({"id": id, "parent": parent})
        try:
            answer = _answer(connection.post(f"/GraphDriver.ApplyDiff?{query}", iter(tar)))
            return cast(int, answer["Size"])
        finally:
            connection.close()

    def diff(self, id: str, parent: str = "") -> BinaryIO:
        """GraphDriver.Diff, as a stream that ends its connection."""
        connection = _Connection(self.path)
        try:
            body = json.dumps({"ID": id, "Parent": parent}).encode() + b"\n"
            answer = connection.post("/GraphDriver.Diff", body)
            if answer.status != 200:
                _answer(answer)
        except BaseException:
            connection.close()
            raise
        connection.sock.close()  # the answer has it
        return cast(BinaryIO, answer)


def _answer(answer: http.client.HTTPResponse) -> Answer:
    found: Answer = json.loads(answer.read())
    if answer.status != 200:
        raise Refused(answer.status, found["Err"])
    assert not found.get("Err"), "an error has another status than 200"
    return found


class Plugin:
    """``lamina serve docker`` as a process, that can be stopped or killed and started again."""

    def __init__(self, socket: Path, ground: Path, run: Path, *options: str) -> None:
        self.socket = socket
        self.log = ground / f"{socket.stem}.log"
        self.call = Client(socket)
        self.argv = [
            sys.executable, "-m", "lamina", "--root", str(ground / "root"),
            "--run-root", str(run), "serve", "docker", "--address", str(socket), "--debug",
            *options,
        ]  # fmt: skip
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                env=self.env,
            )  # fmt: skip
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.call("Plugin.Activate")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the plugin did not come up:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_PATIENCE + 30)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None


@contextmanager
def running(socket: Path, ground: Path, run: Path, *options: str) -> Iterator[Plugin]:
    """A plugin that runs, until the end of the block."""
    plugin = Plugin(socket, ground, run, *options)
    try:
        plugin.start()
    except BaseException:
        plugin.kill()
        raise
    try:
        yield plugin
    finally:
        if plugin.process is not None:
            assert plugin.stop() == 0, plugin.log.read_text()[-3000:]
        plugin.socket.unlink(missing_ok=True)
