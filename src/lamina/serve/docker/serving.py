"""A plugin from start to stop: its socket, its homes, its server."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from socket import socket

from lamina.drivers.base import NO_OPTIONS
from lamina.drivers.homes import Homes
from lamina.serve import sockets
from lamina.serve.docker.server import Server
from lamina.serve.life import stopped_by_signals
from lamina.serve.metrics import Registry, served

log = logging.getLogger(__name__)


def serve(
    address: Path,
    *,
    state: Path,
    run: Path,
    driver: str | None = None,
    options: Mapping[str, str] = NO_OPTIONS,
    group: str | None = None,
    metrics: str | None = None,
) -> None:
    """Serve at ``address`` until SIGTERM or SIGINT.

    What has to outlive the server is in ``state`` and ``run``, in files that are called after the
    socket: a plugin of Docker is known by the name of its socket. Numbers for Prometheus are at
    ``metrics``, HOST:PORT.

    Raises:
        AddressInUse, LaminaError, PermissionRequired: as :func:`lamina.serve.sockets.listen`.
        StoreError, InvalidName: as :class:`lamina.drivers.homes.Homes`.
    """
    name = address.name.removesuffix(".sock")

    def ready() -> None:
        sockets.notify("READY=1")
        log.info("serving", extra={"fields": {"address": address}})

    with ExitStack() as stack:
        stack.enter_context(stopped_by_signals())  # uvicorn passes on to it what stopped it
        homes = Homes(state / f"{name}.json", run / name, driver=driver, options=options)
        stack.enter_context(closing(homes))
        listening = stack.enter_context(_listening(address, group))
        registry = Registry()
        if metrics is not None:
            port = stack.enter_context(served(registry, metrics))
            log.info("metrics", extra={"fields": {"address": metrics, "port": port}})
        names = frozenset({name, "lamina"})
        Server(homes, names, ready=ready, metrics=registry).serve_on(listening)
        sockets.notify("STOPPING=1")
        log.info("stopped", extra={"fields": {"address": address}})


@contextmanager
def _listening(address: Path, group: str | None) -> Iterator[list[socket]]:
    """The sockets of systemd, which stay, or one of our own, which goes."""
    given = sockets.activated()
    if given:
        yield given
        return
    made = sockets.listen(address, group=group)
    mine = sockets.identity(address)
    try:
        yield [made]
    finally:
        sockets.withdraw(address, mine)
        made.close()
