"""Commands run by crun and runc: as without them, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import CommandNotFound, RuntimeFailed, UserNotFound
from lamina.kernel import mount
from lamina.oci.runtime import configuration, encode
from lamina.sandbox import run as run_module
from lamina.sandbox import runtime as runtime_module
from lamina.sandbox.run import Bind, run
from lamina.sandbox.runtime import Runtime, find_runtime
from tests.sandbox.roots import make_small_root, tree
from tests.sandbox.runtimes import NAMES
from tests.sandbox.terminal import Terminal
from tests.support import need
from tests.users import User

SOURCE = str(Path(run_module.__file__).parents[2])
CGROUPS = Path("/sys/fs/cgroup")

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "root"
    make_small_root(path)
    (path / "etc").mkdir()
    (path / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n"
    )
    (path / "etc/group").write_text("root:x:0:\nann:x:1000:\nstaff:x:50:bob,ann\nwheel:x:10:ann\n")
    for name, mode, content in (
        ("text", 0o644, b"no program"),
        ("script", 0o755, b"#!/no/interpreter\n"),
        ("garbage", 0o755, b"\x7fELF garbage"),
        ("private", 0o700, b"#!/bin/sh\n"),
    ):
        (path / "bin" / name).write_bytes(content)
        (path / "bin" / name).chmod(mode)
    return path


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Iterator[Path]:
    """The small root as the read-only part of an overlay; ``tmp_path/upper`` has the changes."""
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={small_root},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mount.mount("overlay", tmp_path / "root", "overlay", 0, options)
    yield tmp_path / "root"
    mount.unmount(tmp_path / "root")


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    """A runtime; at the end it has left neither files nor cgroups."""
    need(request.param)
    noted = Noted(request.param, tmp_path / "oci")
    yield noted
    assert list((tmp_path / "oci").glob("*")) == []
    assert cgroups(noted.ids) == []


class Noted(Runtime):
    """A runtime that knows what its containers were called."""

    def __init__(self, name: str, state: Path) -> None:
        super().__init__(name, state)
        self.ids: list[str] = []

    def _take(self) -> tuple[str, int]:
        id, lock = super()._take()
        self.ids.append(id)
        return id, lock


def cgroups(ids: Iterable[str]) -> list[Path]:
    return [path for id in ids for path in CGROUPS.rglob(id)]


def said(root: Path, script: str, **options: Any) -> str:
    options = {"network": "none", "check": True, **options}
    return run(root, ["sh", "-c", script], stdout=subprocess.PIPE, **options).stdout.decode()


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


# --- as without a runtime


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("echo out; exit 7", {}),
        ("kill -KILL $PPID; echo $PWD", {}),
        ("cat /etc/hosts /etc/hostname /etc/resolv.conf", {"network": "host"}),
        ("ls /sys/class/net; cat /sys/class/net/lo/flags", {}),
        ("cat /etc/hosts; uname -n", {"hostname": "box"}),
        ("uname -n; echo $HOSTNAME", {}),
        ("echo $A $HOME $PATH $TERM", {"env": {"A": "b c"}}),
        ("echo $PWD; stat -c %u:%g:%a .", {"cwd": "/srv/app", "user": "ann"}),
        ("id -u; id -g; id -G; echo $HOME", {"user": None}),
        ("id -u; id -g; id -G; echo $HOME", {"user": "ann"}),
        ("id -u; id -g; id -G; echo $HOME", {"user": "1000"}),
        ("id -u; id -g; id -G; echo $HOME", {"user": "ann:staff"}),
        ("id -u; id -g; id -G; echo $HOME", {"user": "1234:5678"}),
        ("grep -E '^(Cap|NoNewPrivs|Seccomp:|SigIgn|SigBlk)' /proc/self/status", {}),
        ("grep -E '^(Cap|NoNewPrivs)' /proc/self/status", {"user": "ann"}),
        (
            "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status",
            {"capabilities": ["CHOWN"], "no_new_privs": True},
        ),
        ("cat /proc/timer_list /proc/keys; ls /sys/firmware", {}),
        ("echo 1 >/proc/sys/kernel/panic || echo refused; mkdir /sys/x || echo refused", {}),
        ("echo x >/dev/shm/x; cat /dev/shm/x; echo gone >/dev/null; stat -c %a /dev/shm", {}),
        ("touch /bin/new; mkdir -p /srv/x; ls /bin /srv; umask", {}),
        ("cat", {"input": b"in" * 100_000}),
        ("echo one; echo two >&2", {"stderr": subprocess.STDOUT}),
        ("ls /proc/self/fd", {}),
    ],
)
def test_a_command_finds_what_it_finds_without(
    root: Path, runtime: Runtime, script: str, options: dict[str, Any]
) -> None:
    options = {"network": "none", "stderr": subprocess.DEVNULL, **options}
    plain, by_runtime = (
        run(root, ["sh", "-c", script], stdout=subprocess.PIPE, runtime=how, **options)
        for how in (None, runtime)
    )
    assert (by_runtime.returncode, by_runtime.stdout) == (plain.returncode, plain.stdout)


@pytest.mark.parametrize(
    ("command", "user"),
    [
        ("nonsense", None), ("/bin/nonsense", None), ("text", None), ("/bin/text", None),
        ("/bin", None), ("", None), ("../bin/nonsense", None),
    ],
)  # fmt: skip
def test_a_command_that_cannot_run_is_told_as_without(
    root: Path, runtime: Runtime, command: str, user: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    errors = []
    for how in (None, runtime):
        with pytest.raises(CommandNotFound) as caught:
            run(root, [command], user=user, runtime=how)
        errors.append((str(caught.value), caught.value.exit_code))
    assert errors[0] == errors[1]
    assert capfd.readouterr().err == ""


def test_a_program_of_someone_else_is_126(root: Path, runtime: Runtime) -> None:
    with pytest.raises(CommandNotFound) as caught:
        run(root, ["private"], user="ann", runtime=runtime, stderr=subprocess.DEVNULL)
    assert caught.value.exit_code == 126
    subprocess.run(["setfacl", "-m", "u:1000:rx", root / "bin/private"], check=True)
    assert run(root, ["private"], user="ann", runtime=runtime).returncode == 0


def test_a_file_that_execve_refuses_is_126(root: Path, runtime: Runtime) -> None:
    """Whether a script's interpreter is missing too is something that the runtime keeps to
    itself."""
    for name in ("garbage", "script"):
        with pytest.raises(CommandNotFound) as caught:
            run(root, [name], runtime=runtime, stderr=subprocess.DEVNULL)
        assert caught.value.exit_code == 126
    assert run(root, ["sh", "-c", "exit 1"], runtime=runtime).returncode == 1


def test_a_command_may_come_with_a_mount(root: Path, runtime: Runtime) -> None:
    binds = [Bind(root / "bin", "/tools", read_only=True)]
    done = run(root, ["/tools/echo", "hi"], runtime=runtime, mounts=binds, stdout=subprocess.PIPE)
    assert done.stdout == b"hi\n"
    with pytest.raises(CommandNotFound) as caught:
        run(root, ["/tools/nothing"], runtime=runtime, mounts=binds, stderr=subprocess.DEVNULL)
    assert caught.value.exit_code == 127


def test_mounts_are_read_only_all_the_way_down(
    root: Path, runtime: Runtime, tmp_path: Path
) -> None:
    (tmp_path / "data/below").mkdir(parents=True)
    (tmp_path / "data/file").write_text("content")
    binds = [
        Bind(tmp_path / "data", "/mnt/rw"),
        Bind(tmp_path / "data", "/mnt/ro", read_only=True),
        Bind(tmp_path / "data/file", "/file", read_only=True),
    ]
    script = (
        "cat /file; echo new >/mnt/rw/new; for f in /mnt/ro/x /mnt/ro/below/x /file; do "
        "echo y >>$f || echo read-only; done; echo z >/mnt/rw/below/z"
    )
    mount.mount("tmpfs", tmp_path / "data/below", "tmpfs")
    try:
        found = said(root, script, runtime=runtime, mounts=binds, stderr=subprocess.DEVNULL)
        assert os.listdir(tmp_path / "data/below") == ["z"]
    finally:
        mount.unmount(tmp_path / "data/below")
    assert found == "contentread-only\nread-only\nread-only\n"
    assert (tmp_path / "data/new").read_text() == "new\n"
    assert os.listdir(tmp_path / "upper") in ([], ["etc"])


def test_the_command_is_pid_1_and_reaping_is_its_own(root: Path, runtime: Runtime) -> None:
    assert said(root, "echo $$", runtime=runtime) == "1\n"


def test_an_unknown_user_is_told_before_anything_is_made(root: Path, runtime: Runtime) -> None:
    with pytest.raises(UserNotFound):
        run(root, ["true"], user="bob", runtime=runtime)


def test_nothing_is_left_in_a_root_that_lacks_every_mount_point(
    tmp_path: Path, runtime: Runtime
) -> None:
    root = tmp_path / "root"
    make_small_root(root, ["true", "sh", "ls"])
    before = tree(root)
    for network in ("none", "host"):
        assert "hosts" in said(root, "ls /etc", network=network, runtime=runtime)
        assert tree(root) == before


# --- how it ends


def test_a_timeout_kills_everything_and_keeps_what_was_said(root: Path, runtime: Runtime) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        said(root, "echo so far; sleep 100 & sleep 100", runtime=runtime, timeout=1)
    assert caught.value.output == b"so far\n"
    assert processes_of("sleep 100") == []


@pytest.fixture
def caller(root: Path, runtime: Runtime) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started = []

    def start(script: str) -> subprocess.Popen[bytes]:
        code = (
            "from pathlib import Path; import sys\n"
            "from lamina.sandbox.run import run; from lamina.sandbox.runtime import Runtime\n"
            f"how = Runtime({runtime.name!r}, Path({str(runtime.state)!r}))\n"
            f"done = run({str(root)!r}, ['sh', '-c', {script!r}], runtime=how,\n"
            "    forward_signals=True)\n"
            "sys.exit(done.returncode)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={"PYTHONPATH": SOURCE, "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    wait_for(lambda: not processes_of(str(runtime.state)))
    run(root, ["true"], runtime=runtime)  # clears what a killed one has left


def test_signals_go_on_to_the_command(
    caller: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    process = caller(
        "trap 'echo TERM; exit 5' TERM; trap 'echo HUP' HUP; echo ready; "
        "while :; do sleep 0.05; done"
    )
    assert process.stdout is not None
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == b"HUP\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == b"TERM\n"
    assert process.wait() == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_the_command_does_not_expect_ends_it(
    caller: Callable[[str], subprocess.Popen[bytes]], number: signal.Signals
) -> None:
    """Though the kernel does not send such signals to a pid 1."""
    process = caller("echo ready; exec sleep 101")
    wait_for(lambda: len(processes_of("sleep 101")) == 1)  # the shell may expect it
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert processes_of("sleep 101") == []


def test_a_killed_caller_leaves_no_process_and_the_next_run_clears_the_rest(
    root: Path, runtime: Runtime, caller: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    process = caller("echo ready; sleep 102 & exec sleep 102")
    wait_for(lambda: len(processes_of("sleep 102")) == 2)
    process.kill()
    wait_for(lambda: not processes_of("sleep 102"))
    wait_for(lambda: not processes_of(str(runtime.state)))
    ids = [path.name for path in runtime.state.iterdir() if path.is_dir()]
    assert len(ids) == 1
    assert said(root, "echo next", runtime=runtime) == "next\n"
    assert os.listdir(runtime.state) == []
    assert cgroups(ids) == []


def processes_of(text: str) -> list[str]:
    """Processes with this on their command line, words separated by blanks; not their shells."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
        except OSError:
            continue
        if line.decode(errors="replace").startswith(text) or (
            "/" in text and text in line.decode(errors="replace") and b" -c " not in line
        ):
            found.append(pid)
    return found


def test_what_the_runtime_says_is_the_error(
    root: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> dict[str, Any]:
        document = configuration(*args, **kwargs)
        document["mounts"].append({"destination": "/x", "type": "nosuchfs", "source": "none"})
        return document

    monkeypatch.setattr(runtime_module, "configuration", broken)
    with pytest.raises(RuntimeFailed, match=f"^{runtime.name}: .*(nosuchfs|[Nn]o such device)"):
        run(root, ["true"], runtime=runtime, stderr=subprocess.DEVNULL)


def test_a_missing_runtime_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(runtime_module, "DEFAULT_PATH", str(tmp_path))
    with pytest.raises(RuntimeFailed, match="no crun on this machine: install it"):
        find_runtime("crun")
    (tmp_path / "crun").write_text("")
    (tmp_path / "crun").chmod(0o755)
    assert find_runtime("crun") == str(tmp_path / "crun")


def test_a_word_that_is_not_utf8_is_refused(root: Path, runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        run(root, ["echo", "\udcff"], runtime=runtime)


# --- the terminal


def on_terminal(root: Path, runtime: Runtime, argv: list[str]) -> Terminal:
    return Terminal(
        "from pathlib import Path; import os, sys, termios\n"
        "from lamina.sandbox.run import run; from lamina.sandbox.runtime import Runtime\n"
        f"how = Runtime({runtime.name!r}, Path({str(runtime.state)!r}))\n"
        "before = termios.tcgetattr(0)\n"
        f"done = run({str(root)!r}, {argv!r}, runtime=how, forward_signals=True)\n"
        "print('kept', termios.tcgetattr(0) == before, os.tcgetpgrp(0) == os.getpgrp())\n"
        "sys.exit(done.returncode)"
    )


def test_the_command_has_a_terminal(root: Path, runtime: Runtime) -> None:
    script = "tty; stty size; echo $TERM; echo ready; read line; echo got $line; exit 4"
    terminal = on_terminal(root, runtime, ["sh", "-c", script])
    terminal.read_until(b"ready")
    os.write(terminal.fd, b"something\r")
    terminal.read_until(b"kept True True")
    assert b"/dev/pts/0" in terminal.output
    assert b"got something" in terminal.output
    assert terminal.wait() == 4


def test_its_size_is_the_caller_s(root: Path, runtime: Runtime) -> None:
    import fcntl
    import struct
    import termios

    script = "trap 'stty size' WINCH; echo ready; while read line; do stty size; done"
    terminal = on_terminal(root, runtime, ["sh", "-c", script])
    terminal.read_until(b"ready")
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    os.write(terminal.fd, b"\r")
    terminal.read_until(b"33 99")
    os.write(terminal.fd, b"\x04")
    terminal.read_until(b"kept True True")
    assert terminal.wait() == 0


def test_ctrl_c_is_the_command_s_and_job_control_works(root: Path, runtime: Runtime) -> None:
    terminal = on_terminal(root, runtime, ["sh", "-i", "-m"])
    os.write(terminal.fd, b"sleep 100\r")
    terminal.read_until(b"sleep 100")
    wait_for(lambda: processes_of("sleep 100"))
    os.write(terminal.fd, b"\x03")
    os.write(terminal.fd, b"sleep 0.1 &\rfg\recho still $((40 + 2))\rexit\r")
    terminal.read_until(b"still 42")
    terminal.read_until(b"kept True True")
    assert terminal.wait() == 0


def test_much_output_arrives_whole(root: Path, runtime: Runtime) -> None:
    script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; echo the end"
    terminal = on_terminal(root, runtime, ["sh", "-c", script])
    terminal.read_until(b"the end\r\n")
    terminal.read_until(b"kept True True")
    assert terminal.output.count(b"line ") == 5000
    assert terminal.wait() == 0


# --- ordinary users


@pytest.fixture
def user_root(small_root: Path, ordinary_user: User) -> Path:
    path = ordinary_user.home / "root"
    subprocess.run(["cp", "-a", small_root, path], check=True)
    for directory, names, files in os.walk(path):
        for name in (".", *names, *files):
            os.chown(os.path.join(directory, name), ordinary_user.uid, ordinary_user.gid)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_an_ordinary_user_is_root_inside(user_root: Path, ordinary_user: User, name: str) -> None:
    need(name)
    before = tree(user_root)
    for network in ("none", "host"):
        script = "id -u; echo $HOME; ls /dev/null; ls -d /sys/class; exit 3"
        done = ordinary_user.call(
            by_name, user_root, name, ordinary_user.home / "oci", script, network=network
        )
        assert done == (3, "0\n/root\n/dev/null\n/sys/class\n")
        assert tree(user_root) == before
    assert os.listdir(ordinary_user.home / "oci") == []


def by_name(root: Path, name: str, state: Path, script: str, **options: Any) -> tuple[int, str]:
    done = run(
        root, ["sh", "-c", script], runtime=Runtime(name, state), stdout=subprocess.PIPE, **options
    )
    return done.returncode, done.stdout.decode()


def test_the_document_is_json_of_the_version_that_it_says(
    root: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def noting(document: Any) -> bytes:
        seen.append(encode(document))
        return seen[-1]

    monkeypatch.setattr(runtime_module, "encode", noting)
    run(root, ["true"], runtime=runtime)
    document = json.loads(seen[0])
    assert document["ociVersion"] == "1.0.2"
    assert "rlimits" not in document["process"]
