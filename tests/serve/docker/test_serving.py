"""The server as a process: its socket, its start and stop, its numbers."""

from __future__ import annotations

import configparser
import grp
import json
import os
import re
import signal
import socket
import stat
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lamina.drivers.homes import Homes
from lamina.serve import sockets
from lamina.serve.docker.server import Server
from lamina.types import LayerId
from tests.conformance.trees import tar
from tests.serve.docker.plugin import Client, Plugin, Refused, running
from tests.serve.docker.test_protocol import APPLY, Raw

pytestmark = pytest.mark.root

DRIVERS = ["overlay", "aufs"]
REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_socket_is_its_owners_alone(plugin: Plugin) -> None:
    assert stat.S_IMODE(plugin.socket.lstat().st_mode) == 0o600
    plugin.stop()
    assert not plugin.socket.exists()


def test_a_group_may_connect(address: Path, tmp_path: Path, run: Path) -> None:
    group = grp.getgrgid(12).gr_name
    with running(address, tmp_path, run, "--group", group) as plugin:
        status = plugin.socket.lstat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, 12)


def test_mounts_and_their_references_survive_a_kill(plugin: Plugin) -> None:
    plugin.call("GraphDriver.Create", ID="base")
    plugin.call.apply("base", "", [tar("a").getvalue()])
    plugin.call("GraphDriver.CreateReadWrite", ID="box", Parent="base")
    root = Path(plugin.call("GraphDriver.Get", ID="box")["Dir"])
    plugin.call("GraphDriver.Get", ID="box")
    (root / "before").touch()
    plugin.kill()
    plugin.start()
    assert (root / "before").exists()
    plugin.call("GraphDriver.Put", ID="box")
    assert (root / "before").exists(), "one of two references is left"
    plugin.call("GraphDriver.Get", ID="box")
    plugin.stop()
    plugin.start()
    for _ in range(2):
        assert (root / "before").exists()
        plugin.call("GraphDriver.Put", ID="box")
    assert not os.path.ismount(root)


def test_a_mount_that_someone_took_away_is_made_again(plugin: Plugin) -> None:
    """As dockerd does when it starts after a crash."""
    plugin.call("GraphDriver.Create", ID="base")
    plugin.call("GraphDriver.CreateReadWrite", ID="box", Parent="base")
    root = plugin.call("GraphDriver.Get", ID="box")["Dir"]
    subprocess.run(["umount", "-l", root], check=True)
    plugin.call("GraphDriver.Get", ID="box")
    assert os.path.ismount(root)
    plugin.call("GraphDriver.Put", ID="box")
    assert not os.path.ismount(root)


def test_a_killed_fuse_overlayfs_is_replaced(plugin: Plugin, works: str) -> None:
    if works != "aufs":
        pytest.skip("only aufs has processes behind its mounts")
    plugin.call("GraphDriver.Create", ID="base")
    plugin.call("GraphDriver.CreateReadWrite", ID="box", Parent="base")
    root = Path(plugin.call("GraphDriver.Get", ID="box")["Dir"])
    status = dict(plugin.call("GraphDriver.Status")["Status"])
    if not status["Union"].startswith("fuse"):
        pytest.skip("the kernel has aufs")
    found = subprocess.run(
        ["pgrep", "-f", f"fuse-overlayfs .* {root}$"], check=True, capture_output=True, text=True
    )  # fmt: skip
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    time.sleep(0.1)
    assert plugin.call("GraphDriver.Get", ID="box")["Dir"] == str(root)
    assert os.listdir(root) == []
    plugin.call("GraphDriver.Remove", ID="box")
    assert not root.exists()


def test_a_server_that_stops_lets_a_tar_end(plugin: Plugin) -> None:
    plugin.call("GraphDriver.Create", ID="base")
    plugin.call("GraphDriver.Create", ID="new", Parent="base")
    data = tar(("a", b"x" * 100_000)).getvalue()
    assert plugin.process is not None
    with closing(Raw(plugin.socket)) as raw:
        raw.send(APPLY + b"Transfer-Encoding: chunked\r\n\r\n")
        raw.send(b"%x\r\n%b\r\n" % (50_000, data[:50_000]))
        time.sleep(0.2)
        plugin.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(OSError, match=r"refused|No such file"), closing(Raw(plugin.socket)):
            pass
        raw.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data) - 50_000, data[50_000:]))
        assert raw.answer() == (200, {"Size": 100_000, "Err": ""})
    assert plugin.process.wait(10) == 0
    plugin.start()
    assert plugin.call("GraphDriver.DiffSize", ID="new", Parent="base")["Size"] == 100_000


def test_a_tar_that_never_ends_is_given_up(
    address: Path, tmp_path: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    homes = Homes(tmp_path / "state.json", run, driver="vfs")
    homes.begin(tmp_path / "home").create(LayerId("new"))
    listening = sockets.listen(address)
    ready = threading.Event()
    server = Server(homes, frozenset({"lamina"}), ready=ready.set, patience=1)
    thread = threading.Thread(target=server.serve_on, args=([listening],))
    thread.start()
    assert ready.wait(10)
    with closing(Raw(address)) as raw:
        raw.send(APPLY + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc")
        time.sleep(0.2)
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
    listening.close()
    homes.close()
    assert "the server stops" in str([vars(record) for record in caplog.records])
    assert not any(record.exc_info for record in caplog.records)


def test_a_second_server_is_refused(plugin: Plugin, tmp_path: Path, run: Path) -> None:
    second = subprocess.run(plugin.argv, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "another server" in second.stderr
    assert "Traceback" not in second.stderr
    plugin.call("Plugin.Activate")


def _activation(argv: list[str], listening: socket.socket) -> str:
    """A program that hands a listening socket to a server as systemd does."""
    return (
        "import os, sys\n"
        f"os.dup2({listening.fileno()}, 3)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        f"os.execv({argv[0]!r}, {argv!r})\n"
    )


@pytest.fixture
def service_manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that hears what sd_notify(3) says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.settimeout(20)
        heard.bind(f"\0lamina-tests-{os.getpid()}")
        yield heard


def test_systemd_may_have_made_the_socket(stopped: Plugin, service_manager: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(stopped.socket))
        listening.listen()
        process = subprocess.Popen(
            [sys.executable, "-c", _activation(stopped.argv, listening)],
            pass_fds=[listening.fileno()], stderr=subprocess.DEVNULL,
            env={**stopped.env, "NOTIFY_SOCKET": f"@lamina-tests-{os.getpid()}"},
        )  # fmt: skip
        try:
            assert service_manager.recv(100) == b"READY=1"
            assert Client(stopped.socket)("Plugin.Activate")["Implements"] == ["GraphDriver"]
            process.terminate()
            assert process.wait(20) == 0
            assert service_manager.recv(100) == b"STOPPING=1"
        finally:
            process.kill()
            process.wait()
    assert stopped.socket.exists(), "it is systemd's"


def test_numbers_for_prometheus(address: Path, tmp_path: Path, run: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    metrics = f"127.0.0.1:{port}"
    with running(address, tmp_path, run, "--driver", "vfs", "--metrics", metrics) as plugin:
        plugin.call("GraphDriver.Init", Home=f"{tmp_path}/home")
        plugin.call("GraphDriver.Create", ID="base")
        data = tar(("a", b"12345")).getvalue()
        plugin.call.apply("base", "", [data])
        for method in ("GraphDriver.Get", "Made.Up", 'With"Quote'):
            with pytest.raises(Refused):
                plugin.call(method, ID="none")
        with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
            text = answer.read().decode()
        for line in (
            'lamina_calls_total{method="GraphDriver.Create",code="200"} 1',
            'lamina_errors_total{method="GraphDriver.Get",code="500"} 1',
            'lamina_errors_total{method="unknown",code="404"} 2',
            f"lamina_unpacked_bytes_total {len(data)}",
            f'lamina_layers{{home="{tmp_path}/home"}} 1',
            f'lamina_mounts{{home="{tmp_path}/home"}} 0',
        ):
            assert line in text.splitlines(), text


def wait_for_line(plugin: Plugin, pattern: str) -> None:
    """Until the log has it: a call is logged when it has been answered."""
    deadline = time.monotonic() + 30
    while not re.search(pattern, plugin.log.read_text(), re.MULTILINE):
        assert time.monotonic() < deadline, plugin.log.read_text()
        time.sleep(0.02)


def test_calls_and_errors_are_logged_with_the_key(plugin: Plugin) -> None:
    with pytest.raises(Refused):
        plugin.call("GraphDriver.Get", ID="no-such-thing")
    wait_for_line(
        plugin,
        r'level=warning msg="call failed" method=GraphDriver.Get key=no-such-thing code=500 '
        r'seconds=[\d.]+ error="no such layer: no-such-thing"$',
    )
    plugin.call("GraphDriver.Exists", ID="no-such-thing")
    wait_for_line(plugin, "level=debug msg=call method=GraphDriver.Exists")


def test_an_idle_server_is_small(plugin: Plugin) -> None:
    assert plugin.process is not None
    memory = Path(f"/proc/{plugin.process.pid}/status").read_text()
    assert int(re.findall(r"VmRSS:\s+(\d+) kB", memory)[0]) <= 60 << 10


def test_it_answers_within_two_imports_of_grpc(stopped: Plugin) -> None:
    def importing() -> float:
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import grpc"], check=True)
        return time.monotonic() - started

    def answering() -> float:
        started = time.monotonic()
        stopped.start()
        took = time.monotonic() - started
        stopped.stop()
        return took

    importing(), answering()
    pairs = [(answering(), importing()) for _ in range(5)]
    assert min(a for a, _ in pairs) <= 2 * statistics.median(i for _, i in pairs), pairs


def test_the_unit_files_are_for_the_default_address() -> None:
    units = {}
    for kind in ("service", "socket"):
        units[kind] = configparser.ConfigParser(interpolation=None, strict=False)
        units[kind].read(REPOSITORY / f"deploy/lamina-docker.{kind}")
    listen = units["socket"]["Socket"]["ListenStream"]
    help = subprocess.run(
        [sys.executable, "-m", "lamina", "serve", "docker", "--help"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert f"[default: {listen}]" in " ".join(help.split())
    service = units["service"]["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "process", "fuse-overlayfs stays"
    assert not [key for key in service if key.startswith(("private", "protect", "readonly"))]


def test_the_state_is_readable_by_people(plugin: Plugin, tmp_path: Path, works: str) -> None:
    state = json.loads((tmp_path / f"root/docker/{plugin.socket.stem}.json").read_text())
    assert state["homes"][0]["home"] == str(tmp_path / "home")
    assert state["homes"][0]["driver"] == works
