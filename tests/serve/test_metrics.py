"""Numbers in Prometheus's text format."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest

from lamina.errors import LaminaError
from lamina.serve import metrics
from tests import support


@pytest.fixture
def registry() -> metrics.Registry:
    return metrics.Registry()


def test_counters_count_for_each_set_of_labels(registry: metrics.Registry) -> None:
    counter = registry.counter("calls_total", "Calls.")
    counter.add(method="A")
    counter.add(2, method="A")
    counter.add(0.5, method='q"\\\n')
    assert registry.text().splitlines() == [
        "# HELP calls_total Calls.",
        "# TYPE calls_total counter",
        'calls_total{method="A"} 3',
        'calls_total{method="q\\"\\\\\\n"} 0.5',
    ]


def test_a_histogram_counts_what_is_below_its_bounds(registry: metrics.Registry) -> None:
    histogram = registry.histogram("seconds", "Time.")
    for seconds in (0.0001, 0.002, 100):
        histogram.observe(seconds, method="A")
    lines = registry.text().splitlines()
    assert 'seconds_bucket{method="A",le="0.0005"} 1' in lines
    assert 'seconds_bucket{method="A",le="0.0025"} 2' in lines
    assert 'seconds_bucket{method="A",le="30.0"} 2' in lines
    assert 'seconds_bucket{method="A",le="+Inf"} 3' in lines
    assert 'seconds_count{method="A"} 3' in lines
    assert 'seconds_sum{method="A"} 100.0021' in lines


def test_gauges_are_read_when_asked(registry: metrics.Registry) -> None:
    values = [1.0]
    registry.gauge("layers", "Layers.", lambda: {(): values[0]})
    assert registry.text().endswith("layers 1\n")
    values[0] = 2
    assert registry.text().endswith("layers 2\n")


def test_they_are_served_over_http(registry: metrics.Registry) -> None:
    registry.counter("calls_total", "Calls.").add()
    with metrics.served(registry, "127.0.0.1:0") as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE
            assert answer.read().decode() == registry.text()
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
        caught.value.close()


@pytest.mark.parametrize("address", ["[::1]:0", "localhost:0", ":0"])
def test_hosts_may_be_names_and_of_version_6(registry: metrics.Registry, address: str) -> None:
    with metrics.served(registry, address) as port:
        url = f"http://{'localhost' if address == ':0' else address.rpartition(':')[0]}:{port}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nonsense", "it takes HOST:PORT, as 127.0.0.1:9323"),
        ("9323", "it takes HOST:PORT"),
        ("127.0.0.1:", "it takes HOST:PORT"),
        ("127.0.0.1:x", "it takes HOST:PORT"),
        ("127.0.0.1:999999", "it takes HOST:PORT"),
        ("192.0.2.1:1", "Cannot assign requested address"),
    ],
)
def test_an_address_that_can_not_be(registry: metrics.Registry, address: str, why: str) -> None:
    said = re.escape(f"can't serve metrics at {address}: {why}")
    with pytest.raises(LaminaError, match=said), metrics.served(registry, address):
        pass


def test_more_than_a_few_connections_do_not_stay(registry: metrics.Registry) -> None:
    before = threading.active_count()
    with metrics.served(registry, "127.0.0.1:0") as port, ExitStack() as stack:
        waiting = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(100)
        ]
        for each in waiting:
            each.sendall(b"GET /metrics HTTP/1.1\r\nX")
        assert waiting[0].recv(1) == b""  # the oldest goes
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.read().decode() == registry.text()
        assert threading.active_count() - before < 30
    while threading.active_count() > before:
        time.sleep(0.01)


def test_numbers_that_can_not_be_had_are_an_error(
    registry: metrics.Registry, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> dict[metrics.Labels, float]:
        raise OSError("the disk is gone")

    registry.gauge("layers", "Layers.", broken)
    with metrics.served(registry, "127.0.0.1:0") as port:
        with pytest.raises(urllib.error.HTTPError, match="500") as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
        caught.value.close()
    assert "the disk is gone" in caplog.text


def test_a_client_that_goes_away_is_no_traceback(
    registry: metrics.Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    with metrics.served(registry, "127.0.0.1:0") as port:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /metrics HTTP/1.1\r\n")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["Server"] == "lamina"
    while any("process_request" in thread.name for thread in threading.enumerate()):
        time.sleep(0.01)
    assert capfd.readouterr().err == ""


def test_they_are_served_over_ipv6(registry: metrics.Registry) -> None:
    if not os.path.exists("/proc/net/if_inet6"):
        support.missing("no IPv6")
    with (
        metrics.served(registry, "[::1]:0") as port,
        urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=10) as answer,
    ):
        assert answer.status == 200
