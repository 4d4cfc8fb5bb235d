"""Spans of calls for OpenTelemetry, where that is installed and its variables ask for it.

``OTEL_TRACES_EXPORTER`` is ``otlp`` (the package ``opentelemetry-exporter-otlp``), ``console`` or
``none``; without it an ``OTEL_EXPORTER_OTLP_ENDPOINT`` is enough. What else its variables say
(service name, headers, sampling) the SDK reads itself. Under ``opentelemetry-instrument`` the
provider that this has set up is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lamina.log import Log

log = Log(__name__)

Spans = Callable[[str], AbstractContextManager[object]]
"""From the name of a call to a span around it."""


@contextmanager
def spans() -> Iterator[Spans]:
    """Spans, or nothing where they are not wanted; those left are sent when the block ends."""
    exporter = _wanted()
    if not exporter:
        yield lambda name: nullcontext()
        return
    try:
        from opentelemetry import trace
    except ModuleNotFoundError as error:
        log.warning("no spans: there is no Python module %s", error.name)
        yield lambda name: nullcontext()
        return
    provider = _provider(trace, exporter)
    tracer = trace.get_tracer("lamina")
    try:
        yield tracer.start_as_current_span
    finally:
        if provider is not None:
            provider.shutdown()


def _wanted() -> str:
    """The exporter that the environment asks for; "" for none."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    if exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter or ("otlp" if any(map(os.environ.get, endpoints)) else "")


def _provider(trace: Any, exporter: str) -> Any:
    """A provider of our own, made the global one; None if there is another or no SDK."""
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

        if exporter == "console":
            sink: Any = ConsoleSpanExporter()
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found, unused-ignore]
                OTLPSpanExporter,
            )

            sink = OTLPSpanExporter()
    except ModuleNotFoundError as error:
        log.warning("no spans: there is no Python module %s", error.name)
        return None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(sink))
    trace.set_tracer_provider(provider)
    return provider
