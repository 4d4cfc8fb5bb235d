"""Connections are joined, both ways, to their ends."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.serve import sockets
from lamina.serve.relay import relayed


@pytest.fixture
def ends() -> Iterator[tuple[Path, socket.socket]]:
    """Where a client connects, and the listening socket of the server behind."""
    with tempfile.TemporaryDirectory(prefix="lamina-", dir="/tmp") as place:
        outer, inner = Path(place, "outer"), Path(place, "inner")
        with (
            sockets.listen(outer) as listening,
            sockets.listen(inner) as server,
            relayed([listening], inner),
        ):
            server.settimeout(10)
            yield outer, server


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(path))
    return client


def read_all(end: socket.socket) -> bytes:
    parts = []
    while data := end.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def test_bytes_go_both_ways_and_ends_are_passed_on(ends: tuple[Path, socket.socket]) -> None:
    outer, listening = ends
    with connect(outer) as client:
        server, _ = listening.accept()
        with server:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == b"question"
            server.sendall(b"answer")
            server.close()
            assert read_all(client) == b"answer"


def test_much_goes_through_though_the_reader_is_slow(ends: tuple[Path, socket.socket]) -> None:
    outer, listening = ends
    data = os.urandom(8 << 20)
    with connect(outer) as client:
        server, _ = listening.accept()
        with server:
            echoed: list[bytes] = []
            sender = threading.Thread(target=client.sendall, args=(data,))
            sender.start()
            got = b""
            while len(got) < len(data):
                got += server.recv(1 << 20)
            sender.join()
            assert got == data
            answering = threading.Thread(target=server.sendall, args=(data,))
            answering.start()
            while sum(map(len, echoed)) < len(data):
                echoed.append(client.recv(1 << 14))
            answering.join()
            assert b"".join(echoed) == data


def test_a_client_that_goes_away_takes_its_connection_along(
    ends: tuple[Path, socket.socket],
) -> None:
    outer, listening = ends
    client = connect(outer)
    server, _ = listening.accept()
    server.settimeout(10)
    with server:
        client.close()
        assert server.recv(1) == b""
    with connect(outer) as another:
        another.sendall(b"x")
        server, _ = listening.accept()
        with server:
            assert server.recv(1) == b"x"


@pytest.mark.allow_log("can't accept a connection: .*Too many open files")
def test_without_a_descriptor_left_connections_wait(
    ends: tuple[Path, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    outer, listening = ends
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        used = os.dup(client.fileno())
        os.close(used)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        try:
            client.connect(str(outer))
            deadline = time.monotonic() + 10
            while not caplog.records and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)
            assert len(caplog.records) == 1, "it does not try again and again"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        server, _ = listening.accept()
        with server:
            client.sendall(b"question")
            assert server.recv(100) == b"question"
