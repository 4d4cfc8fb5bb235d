"""Every call counted, timed and logged."""

from __future__ import annotations

import logging
from http import HTTPStatus

from lamina.drivers.homes import Homes
from lamina.errors import LaminaError, printable
from lamina.serve.docker.graphdriver import APPLY_DIFF, DIFF, METHODS
from lamina.serve.metrics import Registry

log = logging.getLogger(__name__)

_METHODS = frozenset({*METHODS, APPLY_DIFF, DIFF})


class Watch:
    """Numbers for Prometheus, and a line in the log for each call (failed, or at debug)."""

    def __init__(self, metrics: Registry) -> None:
        self._calls = metrics.counter("lamina_calls_total", "Calls, by method and status.")
        self._errors = metrics.counter("lamina_errors_total", "Calls that failed, by method.")
        self._seconds = metrics.histogram("lamina_call_seconds", "How long calls took.")
        self._unpacked = metrics.counter("lamina_unpacked_bytes_total", "Bytes of tars unpacked.")
        self._unpacking = metrics.counter(
            "lamina_unpack_seconds_total", "Seconds spent on that: with the bytes, the rate."
        )
        self._packed = metrics.counter("lamina_packed_bytes_total", "Bytes of tars packed.")

    def done(
        self,
        method: str,
        key: str,
        seconds: float,
        status: HTTPStatus | None,
        error: Exception | None,
    ) -> None:
        """Note a call that ended; without a status nobody was there to hear of it."""
        known = method if method in _METHODS else "unknown"
        code = "none" if status is None else str(int(status))
        self._calls.add(method=known, code=code)
        self._seconds.observe(seconds, method=known)
        fields = {"method": method, "key": printable(key), "code": code, "seconds": seconds}
        if error is None:
            log.debug("call", extra={"fields": fields})
            return
        self._errors.add(method=known, code=code)
        fields["error"] = str(error) or repr(error)
        expected = isinstance(error, LaminaError | OSError)
        level = logging.WARNING if expected else logging.ERROR
        log.log(
            level, "call failed", exc_info=None if expected else error, extra={"fields": fields}
        )

    def unpacked(self, size: int, seconds: float) -> None:
        """Note a tar that was unpacked, of so many bytes."""
        self._unpacked.add(size)
        self._unpacking.add(seconds)

    def packed(self, size: int) -> None:
        """Note bytes of a tar that was packed."""
        self._packed.add(size)


def measure(homes: Homes, metrics: Registry) -> None:
    """Let the numbers say what there is, as often as they are asked for."""
    metrics.gauge(
        "lamina_layers",
        "Layers, by home.",
        lambda: {
            (("home", str(driver.home)),): sum(1 for _ in driver.ids())
            for driver in homes.drivers()
        },
    )
    metrics.gauge(
        "lamina_mounts",
        "Mounts of layers, by home.",
        lambda: {(("home", str(home)),): float(count) for home, count in homes.mounts().items()},
    )
