"""Sockets of servers: permissions, what dead servers left, activation, notifications."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import LaminaError
from lamina.serve import sockets


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path: a socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="lamina-", dir="/tmp") as path:
        yield Path(path)


def test_only_its_owner_may_connect(place: Path) -> None:
    path = place / "new/s.sock"
    with sockets.listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [entry.name for entry in path.parent.iterdir()] == ["s.sock"]


@pytest.mark.root
def test_a_group_may_connect_if_it_is_named(place: Path) -> None:
    path = place / "new/s.sock"
    with sockets.listen(path, group="12345"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == path.parent.stat().st_gid == 12345
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o710


def test_a_group_that_is_not_there_is_told(place: Path) -> None:
    with pytest.raises(LaminaError, match="no group 'nobodies-at-all'"):
        sockets.listen(place / "s.sock", group="nobodies-at-all")
    assert list(place.iterdir()) == []


def test_the_socket_of_a_dead_server_is_replaced(place: Path) -> None:
    path = place / "s.sock"
    sockets.listen(path).close()
    with sockets.listen(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_server_that_lives_is_left_alone(place: Path) -> None:
    path = place / "s.sock"
    with sockets.listen(path):
        mine = sockets.identity(path)
        with pytest.raises(sockets.AddressInUse, match="another server"):
            sockets.listen(path)
        assert sockets.identity(path) == mine


def test_a_file_in_the_way_is_left_alone(place: Path) -> None:
    path = place / "s.sock"
    path.write_text("precious")
    with pytest.raises(sockets.AddressInUse, match="no socket"):
        sockets.listen(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("target", ["precious", "nowhere"])
def test_a_link_in_the_way_is_left_alone(place: Path, target: str) -> None:
    (place / "precious").write_text("precious")
    path = place / "s.sock"
    path.symlink_to(place / target)
    with pytest.raises(sockets.AddressInUse, match="no socket"):
        sockets.listen(path)
    assert path.is_symlink()
    assert (place / "precious").read_text() == "precious"


def test_a_socket_that_was_replaced_by_a_link_changes_no_file(place: Path) -> None:
    precious = place / "precious"
    precious.write_text("precious")
    precious.chmod(0o640)
    with sockets.claim(place / "s.sock") as bound, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(bound))
        bound.unlink()
        bound.symlink_to(precious)
        with pytest.raises(LaminaError, match="replaced"):
            sockets.publish(bound, place / "s.sock")
    assert stat.S_IMODE(precious.stat().st_mode) == 0o640


def test_a_directory_that_everyone_can_write_is_refused(place: Path) -> None:
    place.chmod(0o777)
    with pytest.raises(LaminaError, match="everyone can write"):
        sockets.listen(place / "s.sock")
    place.chmod(0o1777)
    with sockets.listen(place / "s.sock"):
        pass


def test_a_path_that_is_too_long_is_told(place: Path) -> None:
    with pytest.raises(LaminaError, match="too long"):
        sockets.listen(place / ("x" * 100))


def test_only_our_own_socket_is_withdrawn(place: Path) -> None:
    path = place / "s.sock"
    with sockets.listen(path):
        mine = sockets.identity(path)
    with sockets.listen(path) as other:
        sockets.withdraw(path, mine)
        assert path.exists()
        sockets.withdraw(path, sockets.identity(path))
        assert not path.exists()
        sockets.withdraw(path, mine)
        other.close()


def test_sockets_that_systemd_made_are_taken_once(place: Path) -> None:
    path = place / "s.sock"
    source = (
        "import os, sys\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from lamina.serve import sockets\n"
        "found = sockets.activated()\n"
        "print(len(found), found[0].getsockname(), os.get_inheritable(3), sockets.activated())\n"
    )
    with sockets.listen(path) as listening:
        listening_name = listening.getsockname()
        done = subprocess.run(
            [
                "/bin/bash",
                "-c",
                f'exec "$0" -c "$1" 3<&{listening.fileno()}',
                sys.executable,
                source,
            ],
            env={**os.environ, "LISTEN_FDS": "1", "PYTHONPATH": ":".join(sys.path)},
            pass_fds=[listening.fileno()],
            capture_output=True,
            check=True,
        )
    assert done.stdout.decode().strip() == f"1 {listening_name} False []"


def test_what_systemd_passed_and_is_no_socket_is_told() -> None:
    source = (
        "import os\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}\n"
        "from lamina.errors import LaminaError\n"
        "from lamina.serve import sockets\n"
        "try:\n    sockets.activated()\nexcept LaminaError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        ["/bin/bash", "-c", 'exec "$0" -c "$1" 3</dev/null', sys.executable, source],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"descriptor 3 (LISTEN_FDS) is no socket\n"


def test_sockets_meant_for_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert sockets.activated() == []


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"lamina-{os.getpid()}" if abstract else str(place / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        sockets.notify("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.allow_log("can't tell the service manager")
def test_a_service_manager_that_is_away_is_no_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(place / "gone"))
    sockets.notify("READY=1")
