"""Connections of one listening socket, passed on to another: for servers that must bind their own.

grpcio takes no socket that systemd made. What connects there is joined to a socket of ours in a
directory that nobody else can enter; permissions are those of the socket that was connected to.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lamina.log import Log

log = Log(__name__)

_BLOCK = 64 << 10
_PAUSE = 1.0
"""Seconds without new connections after one could not be accepted: it would fail again at once."""


@contextmanager
def relayed(listening: Sequence[socket.socket], target: Path) -> Iterator[None]:
    """Join what connects to one of ``listening`` with ``target`` while the block runs."""
    with ExitStack() as stack:
        relay = _Relay(listening, target)
        stack.callback(relay.close)
        thread = threading.Thread(target=relay.run, name="lamina-relay")
        thread.start()
        stack.callback(thread.join)
        stack.callback(relay.stop)
        yield


class _Pipe:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.data = memoryview(b"")
        self.ended = False

    def fill(self) -> None:
        """Read what there is, if all before was passed on."""
        if self.data or self.ended:
            return
        try:
            block = self.source.recv(_BLOCK)
        except BlockingIOError:
            return
        if block:
            self.data = memoryview(block)
        else:
            self.ended = True
            self.sink.shutdown(socket.SHUT_WR)

    def drain(self) -> None:
        """Pass on as much as the other side takes."""
        if self.data:
            try:
                self.data = self.data[self.sink.send(self.data) :]
            except BlockingIOError:
                pass


class _Relay:
    """All connections, in one thread."""

    def __init__(self, listening: Sequence[socket.socket], target: Path) -> None:
        self._target = os.fspath(target)
        self._selector = selectors.DefaultSelector()
        self._wake, self._waked = socket.socketpair()
        self._pipes: dict[socket.socket, tuple[_Pipe, _Pipe]] = {}
        self._selector.register(self._waked, selectors.EVENT_READ)
        self._listening = listening
        self._paused_until: float | None = None
        for each in listening:
            each.setblocking(False)
        self._listen()

    def stop(self) -> None:
        self._wake.send(b"x")

    def close(self) -> None:
        for end in list(self._pipes):
            self._drop(end)
        self._selector.close()
        self._wake.close()
        self._waked.close()

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select(self._pause_left()):
                if key.fileobj is self._waked:
                    return
                if key.data is not None:
                    self._accept(key.data)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj in self._pipes:
                    self._move(key.fileobj)

    def _listen(self) -> None:
        for each in self._listening:
            self._selector.register(each, selectors.EVENT_READ, each)

    def _pause(self) -> None:
        """Accept nothing for a while; what connects waits."""
        if self._paused_until is None:
            for each in self._listening:
                self._selector.unregister(each)
            self._paused_until = time.monotonic() + _PAUSE

    def _pause_left(self) -> float | None:
        """Seconds; None without a pause. Ends one that is over."""
        if self._paused_until is None:
            return None
        left = self._paused_until - time.monotonic()
        if left > 0:
            return left
        self._paused_until = None
        self._listen()
        return None

    def _accept(self, listening: socket.socket) -> None:
        with ExitStack() as stack:
            try:
                client, _ = listening.accept()
                stack.callback(client.close)
                server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                stack.callback(server.close)
            except BlockingIOError:
                return
            except OSError as error:  # too many open files, of the process or of all
                log.warning("can't accept a connection: %s", error)
                self._pause()
                return
            try:
                server.connect(self._target)
            except OSError as error:
                log.warning("can't pass on a connection: %s", error)
                return
            stack.pop_all()
        pair = _Pipe(client, server), _Pipe(server, client)
        for end in (client, server):
            end.setblocking(False)
            self._pipes[end] = pair
            self._selector.register(end, selectors.EVENT_READ)

    def _move(self, end: socket.socket) -> None:
        pair = self._pipes[end]
        try:
            for pipe in pair:
                pipe.drain()
                pipe.fill()
                pipe.drain()
        except OSError:
            self._drop(end)
            return
        if all(pipe.ended and not pipe.data for pipe in pair):
            self._drop(end)
            return
        self._await(pair)

    def _await(self, pair: tuple[_Pipe, _Pipe]) -> None:
        """Listen for what can go on: reading where nothing waits, writing where something does."""
        for forth, back in (pair, pair[::-1]):
            events = 0
            if not forth.data and not forth.ended:
                events |= selectors.EVENT_READ
            if back.data:
                events |= selectors.EVENT_WRITE
            end = forth.source
            if not events:
                if end in self._selector.get_map():
                    self._selector.unregister(end)
            elif end in self._selector.get_map():
                self._selector.modify(end, events)
            else:
                self._selector.register(end, events)

    def _drop(self, end: socket.socket) -> None:
        for pipe in self._pipes.pop(end, ()):
            other = pipe.source
            self._pipes.pop(other, None)
            if other.fileno() >= 0:
                if other in self._selector.get_map():
                    self._selector.unregister(other)
                other.close()
