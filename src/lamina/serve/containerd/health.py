"""The service ``grpc.health.v1.Health``: whether the server serves."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator

import grpc

from lamina.errors import printable
from lamina.serve.containerd.api import health_pb2
from lamina.serve.containerd.calls import Busy, Call, Unknown

NAME = "grpc.health.v1.Health"
_WATCHERS = 4
"""Each keeps one of the server's threads."""
_LOOK = 1.0  # seconds after which one that is gone is noticed


class HealthService:
    """Says SERVING for the services of the server, and for "", until it is told to stop."""

    def __init__(self, services: Collection[str]) -> None:
        self._services = {"", *services}
        self._stopping = threading.Event()
        self._free = threading.Semaphore(_WATCHERS)

    def calls(self) -> dict[str, Call]:
        """Its methods."""
        return {
            "Check": Call(health_pb2.HealthCheckRequest, self._check),
            "Watch": Call(health_pb2.HealthCheckRequest, self._watch, stream=True),
        }

    def stop(self) -> None:
        """Say NOT_SERVING from now on."""
        self._stopping.set()

    def _check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            raise Unknown(f"no such service: {printable(request.service)}")
        return self._answer(request.service)

    def _watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        if not self._free.acquire(blocking=False):
            raise Busy("too many watch already")
        try:
            yield self._answer(request.service)
            while context.is_active() and not self._stopping.wait(_LOOK):
                pass
            if context.is_active():
                yield self._answer(request.service)
        finally:
            self._free.release()

    def _answer(self, service: str) -> health_pb2.HealthCheckResponse:
        status = health_pb2.HealthCheckResponse
        if service not in self._services:
            return status(status=status.SERVICE_UNKNOWN)
        return status(status=status.NOT_SERVING if self._stopping.is_set() else status.SERVING)
