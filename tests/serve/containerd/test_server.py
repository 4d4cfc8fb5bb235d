"""The server as systemd and Prometheus see it."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from lamina.errors import InvalidName
from lamina.serve import sockets
from lamina.store.snapshots import Snapshots
from tests.serve.containerd.conftest import Ground
from tests.serve.containerd.test_crashes import PATIENCE, client_of, server

pytestmark = pytest.mark.root


@pytest.fixture
def driver_name() -> str:
    return "overlay"


def test_only_root_may_connect_or_a_group(ground: Ground) -> None:
    with server(ground):
        assert stat.S_IMODE(ground.socket.stat().st_mode) == 0o600
    with server(ground, "--group", "12345"):
        found = ground.socket.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, 12345)


def test_a_socket_that_systemd_made_outlives_the_server(ground: Ground) -> None:
    script = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@" 3<&0'
    command = [
        "/bin/bash", "-c", script, sys.executable, "-m", "lamina", "--run-root",
        str(ground.run / "refs"), "serve", "containerd", "--root", str(ground.root),
        "--driver", "overlay", "--address", str(ground.run / "unused.sock"),
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    with sockets.listen(ground.socket) as listening:
        for turn in range(2):
            with (
                client_of(ground) as client,  # connects before the server is up
                subprocess.Popen(
                    command, stdin=listening.fileno(), stderr=subprocess.PIPE, env=env
                ) as process,
            ):
                try:
                    client.prepare(f"key {turn}")
                    assert len(list(client.list())) == turn + 1
                finally:
                    process.terminate()
                assert process.stderr
                said = process.stderr.read().decode()
                assert process.wait(PATIENCE) == 0, said
        assert ground.socket.exists()
    assert not (ground.run / "unused.sock").exists()


def test_the_service_manager_hears_of_its_life(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(str(ground.run / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(ground.run / "notify"))
        with server(ground) as process:
            assert manager.recv(100) == b"READY=1"
            process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(PATIENCE) == 0


def test_numbers_and_log_lines_of_its_calls(ground: Ground) -> None:
    with server(ground, "--metrics", "127.0.0.1:0", "--debug") as process:
        assert process.stderr
        line = ""
        while "port=" not in line:
            line = process.stderr.readline().decode()
        port = line.rpartition("port=")[2].strip()
        with client_of(ground) as client:
            client.prepare("a key")
            client.commit("base", "a key")
            client.view("view", "base")
            with pytest.raises(LookupError):
                client.stat("nowhere")
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        process.terminate()
        log = process.stderr.read().decode()
    for expected in (
        'lamina_calls_total{method="Prepare",code="OK"} 1',
        'lamina_errors_total{method="Stat",code="NOT_FOUND"} 1',
        'lamina_call_seconds_count{method="Commit"} 1',
        'lamina_snapshots{kind="committed"} 1',
        'lamina_snapshots{kind="view"} 1',
        "lamina_layers 1",
        "lamina_mounts 1",
    ):
        assert expected in lines
    assert any(line.startswith("lamina_committed_bytes ") for line in lines)
    assert re.search(r'level=debug msg=call method=Prepare key="a key" code=OK seconds=0\.', log)
    assert re.search(r"level=info msg=.call failed. method=Stat key=nowhere code=NOT_FOUND", log)


def test_idle_it_is_small(ground: Ground) -> None:
    with server(ground) as process, client_of(ground) as client:
        client.prepare("key")
        time.sleep(0.2)
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]
        assert resident < 60 * 1024


def test_without_its_libraries_it_says_what_to_install(ground: Ground) -> None:
    source = (
        "import sys; sys.modules['grpc'] = None\n"
        "from lamina.cli.process import run\n"
        f"sys.exit(run(['serve', 'containerd', '--root', {str(ground.root)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Lamina's extra 'serve', as by pipx install --force '.[serve]'" in done.stderr


def test_a_driver_that_there_is_not_is_said_before_the_one_that_there_is(ground: Ground) -> None:
    with server(ground):
        pass
    with pytest.raises(InvalidName, match="no driver is called 'zfs'"):
        Snapshots(ground.root, run=ground.run / "refs", driver="zfs")
