"""User namespaces that are opened for their maps alone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from lamina.kernel import namespaces, userns
from lamina.kernel.idmap import IdMap, IdRange
from lamina.kernel.userns import open_user_namespace
from tests.support import need

pytestmark = pytest.mark.root

IDMAP = IdMap((IdRange(0, 100_000, 1000), IdRange(1000, 5, 1)), (IdRange(0, 300_000, 2000),))


def _children() -> str:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


def test_it_has_the_maps_and_no_process() -> None:
    children = _children()  # fixtures of the session have some
    need("unshare", "nsenter")
    before = len(os.listdir("/proc/self/fd"))
    fd = open_user_namespace(IDMAP)
    try:
        assert not os.get_inheritable(fd)
        assert _children() == children
        enter = ["nsenter", f"--user=/proc/{os.getpid()}/fd/{fd}", "cat"]
        done = subprocess.run(
            [*enter, "/proc/self/uid_map", "/proc/self/gid_map"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines = [line.split() for line in done.stdout.splitlines()]
        assert lines == [["0", "100000", "1000"], ["1000", "5", "1"], ["0", "300000", "2000"]]
    finally:
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_namespace_needs_a_map() -> None:
    with pytest.raises(ValueError, match="without ranges"):
        open_user_namespace(IdMap())


def test_what_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    children = _children()  # fixtures of the session have some
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(userns, "_COMMAND", ("unshare", "--no-such-option"))
    with pytest.raises(PermissionError, match="no user namespace"):
        open_user_namespace(IDMAP)
    ranges = (IdRange(0, 100_000, 1), IdRange(1, 2**32 - 1, 5))  # ids that there are not
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"Invalid argument|not permitted"):
        open_user_namespace(IdMap(ranges, ranges))
    assert _children() == children
    assert len(os.listdir("/proc/self/fd")) == before
    assert capfd.readouterr().err == ""


def test_its_process_goes_when_this_one_is_killed() -> None:
    """Before the maps are written, at a point where it would wait for ever."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:

            def stop(pid: int, idmap: IdMap) -> None:
                os.write(writer, b"%d" % pid)
                signal.pause()

            namespaces.write_id_maps = stop
            open_user_namespace(IDMAP)
        finally:
            os._exit(1)
    os.close(writer)
    waiting = int(os.read(reader, 20))
    os.close(reader)
    pidfd = os.pidfd_open(waiting)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(60_000)
    finally:
        os.close(pidfd)


def test_a_child_that_another_thread_forked_does_not_hold_it_up() -> None:
    """It has our end of the pipes, which does not end as long as it lives."""
    released, wait = os.pipe()
    children = []
    real = os.posix_spawnp

    def spawn(*args: object, **options: object) -> int:
        child = os.fork()
        if child == 0:
            os.close(wait)
            os.read(released, 1)
            os._exit(0)
        children.append(child)
        return real(*args, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_spawnp", spawn)
        os.close(userns.open_user_namespace(IDMAP))
        patch.setattr(userns, "_COMMAND", ("false",))
        with pytest.raises(PermissionError, match="no user namespace"):
            userns.open_user_namespace(IDMAP)
    os.close(wait)
    os.close(released)
    for child in children:
        os.waitpid(child, 0)
