"""The server: its services on a socket, from READY to the last call."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from lamina.errors import LaminaError
from lamina.serve import metrics, sockets
from lamina.serve.containerd import diff, health, snapshots
from lamina.serve.containerd.calls import Watched, service
from lamina.serve.containerd.content import Content
from lamina.serve.life import stopped_by_signals
from lamina.serve.relay import relayed
from lamina.serve.tracing import spans
from lamina.store.snapshots import Kind, Snapshots

_log = logging.getLogger(__name__)

THREADS = 32
"""Calls that are served at once; more wait."""
_LONGEST_REQUEST = 4 << 20
"""Bytes: containerd's own limit is 16 MiB, and a request with a hundred labels has 400 KiB."""
_LONGEST_METADATA = 64 << 10
_GRACE = 10.0  # seconds that calls have to end


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve."""

    address: Path
    group: str | None = None
    metrics: str | None = None
    content_root: Path | None = None
    """containerd's content store, to read blobs where they lie."""
    containerd: Path | None = None
    """containerd's own socket, to read blobs from it and write them to it."""


def serve(store: Snapshots, options: Options) -> None:
    """Serve until SIGTERM or SIGINT. In the main thread."""
    with ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signals())
        registry = stack.enter_context(running(store, options))
        if options.metrics is not None:
            port = stack.enter_context(metrics.served(registry, options.metrics))
            _log.info("metrics", extra={"fields": {"address": options.metrics, "port": port}})
        sockets.notify("READY=1")
        stop.wait()
        sockets.notify("STOPPING=1")
        _log.info("stopping")
    _log.info("stopped")


@contextmanager
def running(store: Snapshots, options: Options) -> Iterator[metrics.Registry]:
    """A server that answers while the block runs; calls under way then get some time to end."""
    registry = metrics.Registry()
    _watch_store(registry, store)
    content = Content(options.content_root, options.containerd)
    healthy = health.HealthService((snapshots.NAME, diff.NAME))
    with ExitStack() as stack:
        stack.callback(content.close)
        watched = Watched(registry, stack.enter_context(spans()))
        pool = stack.enter_context(ThreadPoolExecutor(THREADS, "lamina-call"))
        server = grpc.server(pool, options=_CHANNEL)
        server.add_generic_rpc_handlers(
            (
                service(snapshots.NAME, snapshots.SnapshotsService(store).calls(), watched),
                service(diff.NAME, diff.DiffService(store, content, registry).calls(), watched),
                service(health.NAME, healthy.calls(), watched),
            )
        )
        stack.enter_context(_listening(server, options))
        stack.enter_context(_sweeping(store))
        _log.info("serving", extra={"fields": {
            "address": options.address, "driver": store.driver.name, "root": store.root,
        }})  # fmt: skip
        try:
            yield registry
        finally:
            healthy.stop()
            server.stop(_GRACE).wait()


_CHANNEL = (
    ("grpc.max_receive_message_length", _LONGEST_REQUEST),
    ("grpc.max_metadata_size", _LONGEST_METADATA),
    ("grpc.so_reuseport", 0),
)


@contextmanager
def _listening(server: grpc.Server, options: Options) -> Iterator[None]:
    """Start the server on its socket, or behind those that systemd made."""
    activated = sockets.activated()
    with ExitStack() as stack:
        if activated:
            for each in activated:
                stack.enter_context(each)
            inner = stack.enter_context(tempfile.TemporaryDirectory(prefix="lamina-serve-"))
            _bind(server, Path(inner, "s"))
            server.start()
            stack.enter_context(relayed(activated, Path(inner, "s")))
            yield
            return
        with sockets.claim(options.address, group=options.group) as temporary:
            _bind(server, temporary)
            server.start()
            mine = sockets.identity(temporary)
            sockets.publish(temporary, options.address, group=options.group)
        stack.callback(sockets.withdraw, options.address, mine)
        yield


def _bind(server: grpc.Server, path: Path) -> None:
    with sockets.private_files():
        try:
            bound = server.add_insecure_port(f"unix:{path}")
        except RuntimeError:
            bound = 0
    if not bound:
        raise LaminaError(f"can't listen at {os.fspath(path.parent)}")


@contextmanager
def _sweeping(store: Snapshots) -> Iterator[None]:
    """Remove, beside the work, what the process before us did not come to."""

    def sweep() -> None:
        try:
            count = store.cleanup()
        except Exception:
            _log.exception("can't remove what is left over")
        else:
            if count:
                _log.info("removed what was left over", extra={"fields": {"layers": count}})

    thread = threading.Thread(target=sweep, name="lamina-sweep")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _watch_store(registry: metrics.Registry, store: Snapshots) -> None:
    registry.gauge(
        "lamina_snapshots",
        "Snapshots, by kind.",
        lambda: {(("kind", k.name.lower()),): n for k, n in store.count().items()},
    )
    registry.gauge(
        "lamina_layers", "Layers of the driver.",
        lambda: {(): sum(1 for _ in store.driver.ids())},
    )  # fmt: skip
    registry.gauge(
        "lamina_mounts", "Mounts that clients were told of: active snapshots and views.",
        lambda: {(): sum(n for kind, n in store.count().items() if kind is not Kind.COMMITTED)},
    )  # fmt: skip
    registry.gauge(
        "lamina_committed_bytes", "Bytes on disk of committed snapshots, as recorded.",
        lambda: {(): store.committed_size()},
    )  # fmt: skip
