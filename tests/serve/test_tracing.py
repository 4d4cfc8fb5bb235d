"""Spans go where the environment says, and nowhere if it says nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lamina.serve.tracing import spans

SOURCE = """
import sys
from lamina.serve.tracing import spans
with spans() as span:
    with span("Prepare"):
        pass
print("loaded" if "opentelemetry" in sys.modules else "not loaded")
"""


def traced(**variables: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", SOURCE],
        env={**clean, "PYTHONPATH": ":".join(sys.path), **variables},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_spans_are_written_where_they_are_wanted() -> None:
    assert '"name": "Prepare"' in traced(OTEL_TRACES_EXPORTER="console")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_loaded_where_they_are_not(variables: dict[str, str]) -> None:
    assert traced(**variables) == "not loaded\n"


@pytest.mark.allow_log("no spans: there is no Python module opentelemetry")
def test_a_missing_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with spans() as span, span("Prepare"):
        pass
