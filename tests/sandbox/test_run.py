from __future__ import annotations

import enum
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.errors import CommandNotFound, UnmappedId, UserNotFound
from lamina.kernel import mount
from lamina.kernel.idmap import IdMap, IdRange
from lamina.sandbox import run as run_module
from lamina.sandbox.run import Bind, run
from tests.sandbox.roots import make_small_root, tree
from tests.sandbox.terminal import Terminal
from tests.users import User

SOURCE = str(Path(run_module.__file__).parents[2])
DOCKER_DEFAULT = 0xA80425FB

pytestmark = pytest.mark.root


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "root"
    make_small_root(path)
    (path / "etc").mkdir()
    (path / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n"
    )
    (path / "etc/group").write_text("root:x:0:\nann:x:1000:\nstaff:x:50:bob,ann\nwheel:x:10:ann\n")
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


def said(root: Path, *argv: str, **options: object) -> str:
    """What the command printed."""
    options.setdefault("network", "none")
    done = run(root, argv, stdout=subprocess.PIPE, check=True, **options)  # type: ignore[arg-type]
    return str(done.stdout.decode().strip())


def shell(root: Path, script: str, **options: object) -> str:
    return said(root, "sh", "-c", script, **options)


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


# --- what the command finds


def test_the_command_has_its_own_processes_and_pid_1_is_not_it(root: Path) -> None:
    assert shell(root, "echo $$; ls -d /proc/[0-9]*").splitlines()[:2] == ["2", "/proc/1"]


def test_dev_has_what_docker_has(root: Path) -> None:
    names = set(said(root, "ls", "/dev").split())
    assert names >= {"null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm"}
    assert names >= {"fd", "stdin", "stdout", "stderr", "core"}
    assert not names & {"kmsg", "mem", "sda", "vda", "kvm"}
    assert (
        shell(root, "echo gone >/dev/null; cat /dev/null; echo x >/dev/shm/x; cat /dev/shm/x")
        == "x"
    )


def test_proc_is_masked_and_sys_read_only(root: Path) -> None:
    assert shell(root, "cat /proc/timer_list /proc/keys; ls /sys/firmware") == ""
    script = "echo 1 >/proc/sys/kernel/panic || echo refused; mkdir /sys/x || echo refused"
    assert shell(root, script, stderr=subprocess.DEVNULL) == "refused\nrefused"


def test_rights_are_dockers(root: Path) -> None:
    status = shell(root, "grep -E '^(Cap|NoNewPrivs)' /proc/self/status")
    fields = dict(line.split(":\t") for line in status.splitlines())
    assert int(fields["CapEff"], 16) == DOCKER_DEFAULT
    assert int(fields["CapBnd"], 16) == DOCKER_DEFAULT
    assert int(fields["CapInh"], 16) == 0
    assert fields["NoNewPrivs"] == "0"


def test_rights_can_be_chosen(root: Path) -> None:
    status = shell(
        root, "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status",
        capabilities=["CHOWN"], no_new_privs=True,
    )  # fmt: skip
    assert status.splitlines() == ["CapEff:\t0000000000000001", "NoNewPrivs:\t1"]
    with pytest.raises(ValueError, match="no such capability"):
        run(root, ["true"], capabilities=["CAP_FLY"])


def test_without_a_network_there_is_loopback_alone(root: Path) -> None:
    script = "ls /sys/class/net; cat /sys/class/net/lo/flags"
    assert shell(root, script) == "lo\n0x9"


def test_names_of_the_network_are_the_hosts(root: Path) -> None:
    assert said(root, "cat", "/etc/hosts", network="host") == Path("/etc/hosts").read_text().strip()
    assert said(root, "cat", "/etc/hostname", hostname="box") == "box"
    assert said(root, "uname", "-n", hostname="box") == "box"
    assert "box" in said(root, "cat", "/etc/hosts", hostname="box")
    assert os.uname().nodename != "box"
    with pytest.raises(ValueError, match="network"):
        run(root, ["true"], network="moon")  # type: ignore[arg-type]


def test_the_environment_is_what_was_given_and_dockers_defaults(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    lines = shell(root, "set", env={"A": "b c", "HOME": "/x"}).splitlines()
    assert "A='b c'" in lines and "HOME='/x'" in lines
    assert not [line for line in lines if line.startswith("SECRET")]
    assert "PATH='/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'" in lines
    assert "HOME='/root'" in shell(root, "set").splitlines()


def test_a_missing_working_directory_is_made(root: Path, tmp_path: Path) -> None:
    assert shell(root, "echo $PWD", cwd="/srv/app") == "/srv/app"
    assert (tmp_path / "upper/srv/app").is_dir()
    with pytest.raises(NotADirectoryError):
        run(root, ["true"], cwd="/bin/sh")


def test_mounts(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("content")
    binds = [
        Bind(tmp_path / "data", "/mnt/rw"),
        Bind(tmp_path / "data", "/mnt/ro", read_only=True),
        Bind(tmp_path / "data/file", "/file"),
    ]
    script = "cat /file; echo new >/mnt/rw/new; touch /mnt/ro/x || echo read-only"
    assert shell(root, script, mounts=binds, stderr=subprocess.DEVNULL) == "contentread-only"
    assert (tmp_path / "data/new").read_text() == "new\n"
    assert os.listdir(tmp_path / "upper") in ([], ["etc"])


def test_the_hosts_mounts_and_files_are_out_of_reach(root: Path) -> None:
    table = said(root, "cat", "/proc/self/mountinfo")
    targets = [line.split()[4] for line in table.splitlines()]
    assert set(targets) >= {"/", "/proc", "/dev"}
    assert targets.count("/") == 1
    own = set(shell(root, "ls /proc/1/root/", capabilities=["ALL"]).split())
    assert own == {*os.listdir(root), "dev", "proc", "sys"}


# --- nothing is left in the root


def test_a_run_leaves_nothing_in_a_root_that_lacks_every_mount_point(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_small_root(root, ["true", "sh", "ls"])
    before = tree(root)
    for network in ("none", "host"):
        assert "hosts" in said(root, "ls", "/etc", network=network)
        assert tree(root) == before
    run(root, ["sh", "-c", "kill -9 $$"])
    assert tree(root) == before


def test_a_run_leaves_nothing_in_the_upper_directory(root: Path, tmp_path: Path) -> None:
    assert "resolv.conf" in said(root, "ls", "/etc", network="host")
    left = [p for p in (tmp_path / "upper").rglob("*") if p.name != "etc"]
    assert left == []
    etc, lower = os.stat(root / "etc"), os.stat(tmp_path / "upper/etc")
    assert etc.st_mtime_ns == lower.st_mtime_ns


def test_what_the_command_puts_beside_a_mount_point_stays(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_small_root(root, ["sh"])
    shell(root, "echo x >/etc/mine")
    assert os.listdir(root / "etc") == ["mine"]
    assert os.listxattr(root / "etc") == []


def test_runs_at_once_in_one_root_do_not_pull_away_each_others_mounts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_small_root(root, ["sh", "ls", "sleep"])
    before = tree(root)
    outputs: list[str] = []

    def one(delay: float) -> None:
        outputs.append(shell(root, f"sleep {delay}; ls /proc/self/status /dev/null"))

    threads = [threading.Thread(target=one, args=(n / 5,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == ["/dev/null\n/proc/self/status"] * 3
    assert tree(root) == before


def test_a_killed_runs_mount_points_go_with_the_next_run(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_small_root(root, ["sh", "sleep", "true"])
    before = tree(root)
    code = f"from lamina.sandbox.run import run; run({str(root)!r}, ['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", code], env={"PYTHONPATH": SOURCE}) as caller:
        wait_for(lambda: (root / "etc/hosts").exists())
        caller.kill()
    wait_for(lambda: not _processes_in(root))
    assert (root / "proc").exists()
    run(root, ["true"])
    assert tree(root) == before


def test_a_dangling_link_in_place_of_a_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_small_root(root, ["cat"])
    (root / "etc").mkdir()
    (root / "etc/hosts").symlink_to("../run/generated/hosts")
    (root / "etc/hostname").symlink_to("/etc/hostname")
    before = tree(root)
    assert "localhost" in said(root, "cat", "/etc/hosts")
    assert tree(root) == before


def test_links_out_of_the_root_stay_in_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    make_small_root(root, ["cat", "ls"])
    outside.mkdir()
    (root / "etc").symlink_to(outside)
    (root / "dev").symlink_to(tmp_path / "elsewhere")
    before = tree(root)
    assert "null" in said(root, "ls", "/dev/")
    assert os.listdir(outside) == []
    assert tree(root) == before


def _processes_in(root: Path) -> list[str]:
    """Processes whose root directory is ``root``."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        except OSError:
            continue
        top = next((line for line in lines if line.split()[4] == "/"), "")  # in a chroot: none
        if f" {root} " in top or f"upperdir={root.parent}/upper" in top:
            found.append(pid)
    return found


# --- users


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups"),
    [
        (None, 0, 0, "0"),
        ("ann", 1000, 1000, "1000 10 50"),
        ("1000", 1000, 1000, "1000 10 50"),
        ("ann:staff", 1000, 50, "50"),
        ("1234", 1234, 0, "0"),
        ("1234:5678", 1234, 5678, "5678"),
        (":50", 0, 50, "50"),
    ],
)
def test_users_are_looked_up_in_the_root(
    root: Path, user: str | None, uid: int, gid: int, groups: str
) -> None:
    assert shell(root, "id -u; id -g; id -G", user=user).splitlines() == [
        str(uid),
        str(gid),
        groups,
    ]


def test_a_user_has_no_capabilities_and_its_home(root: Path) -> None:
    script = "echo $HOME; grep CapEff /proc/self/status"
    assert shell(root, script, user="ann").splitlines() == [
        "/home/ann",
        "CapEff:\t0000000000000000",
    ]


def test_an_unknown_user_or_group_is_refused(root: Path) -> None:
    for user in ("bob", "ann:nogroup"):
        with pytest.raises(UserNotFound, match="no such user or group"):
            run(root, ["true"], user=user)


def test_a_passwd_that_leads_out_of_the_root_or_never_ends(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_small_root(root, ["id"])
    (root / "etc").mkdir()
    (tmp_path / "passwd").write_text("ann:x:7:7::/:\n")
    (root / "etc/passwd").symlink_to(tmp_path / "passwd")
    os.mkfifo(root / "etc/group")
    with pytest.raises(UserNotFound):
        run(root, ["id"], user="ann")
    assert said(root, "id", "-u", user="7:7") == "7"


# --- how it ends


def test_the_exit_status_is_the_commands(root: Path) -> None:
    assert run(root, ["sh", "-c", "exit 7"]).returncode == 7
    assert run(root, ["sh", "-c", "kill -TERM $$"]).returncode == 128 + signal.SIGTERM
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(root, ["sh", "-c", "exit 7"], check=True)
    assert caught.value.returncode == 7
    assert caught.value.cmd == ["sh", "-c", "exit 7"]


def test_a_command_that_is_not_there_is_127_and_one_that_cannot_run_126(root: Path) -> None:
    (root / "bin/text").write_text("no program")
    (root / "bin/text").chmod(0o644)
    (root / "bin/script").write_text("#!/no/interpreter\n")
    (root / "bin/script").chmod(0o755)
    (root / "bin/garbage").write_bytes(b"\x7fELF garbage")
    (root / "bin/garbage").chmod(0o755)
    cases = {
        "nonsense": 127, "/bin/nonsense": 127, "text": 126, "/bin/text": 126, "/bin": 126,
        "script": 127, "garbage": 126, "": 127,
    }  # fmt: skip
    for command, code in cases.items():
        with pytest.raises(CommandNotFound) as caught:
            run(root, [command])
        assert caught.value.exit_code == code, command
        assert "\n" not in str(caught.value)
        machine = f"Exec format error (no program for this {os.uname().machine})"
        assert (machine in str(caught.value)) == (command == "garbage")
    with pytest.raises(ValueError, match="empty"):
        run(root, [])
    with pytest.raises(TypeError, match=r"a list of words.*not 'echo hi'"):
        run(root, "echo hi")


def test_what_the_command_leaves_running_ends_with_it(root: Path) -> None:
    run(root, ["sh", "-c", "sleep 1000 & sleep 1000 & exit 0"])
    wait_for(lambda: not _processes_in(root))


def test_pid_1_reaps(root: Path) -> None:
    script = "(sh -c 'sleep 0.05 & exit 0'); sleep 0.3; grep -l 'State:.Z' /proc/[0-9]*/status"
    done = run(root, ["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert done.stdout == b""


def test_input_and_output(root: Path) -> None:
    done = run(
        root, ["sh", "-c", "cat; echo err >&2"], input=b"in" * 100_000,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert done.stdout == b"in" * 100_000
    assert done.stderr == b"err\n"


def test_a_timeout_kills_everything_and_keeps_what_was_said(root: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run(root, ["sh", "-c", "echo so far; sleep 100"], timeout=1, stdout=subprocess.PIPE)
    assert caught.value.output == b"so far\n"
    assert caught.value.cmd == ["sh", "-c", "echo so far; sleep 100"]
    assert _processes_in(root) == []


def test_signals_to_the_caller_go_on_to_the_command(root: Path, tmp_path: Path) -> None:
    script = (
        "trap 'echo TERM; exit 5' TERM; trap 'echo HUP' HUP; echo ready; "
        "while :; do sleep 0.05; done"
    )
    code = (
        "from lamina.sandbox.run import run; import sys\n"
        f"sys.exit(run({str(root)!r}, ['sh', '-c', {script!r}], forward_signals=True).returncode)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env={"PYTHONPATH": SOURCE},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    ) as caller:  # fmt: skip
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"ready\n"
        caller.send_signal(signal.SIGHUP)
        assert caller.stdout.readline() == b"HUP\n"
        caller.send_signal(signal.SIGTERM)
        assert caller.stdout.readline() == b"TERM\n"
        assert caller.wait() == 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_dies_with_its_caller(root: Path, number: signal.Signals) -> None:
    argv = ["sh", "-c", "echo ready; sleep 100"]
    code = f"from lamina.sandbox.run import run; run({str(root)!r}, {argv!r})"
    with subprocess.Popen(
        [sys.executable, "-c", code], env={"PYTHONPATH": SOURCE}, stdout=subprocess.PIPE
    ) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"ready\n"
        assert _processes_in(root)
        caller.send_signal(number)
    wait_for(lambda: not _processes_in(root))


def test_ctrl_c_is_keyboard_interrupt_for_a_program_and_leaves_nothing(root: Path) -> None:
    code = (
        "from lamina.sandbox.run import run\n"
        f"try: run({str(root)!r}, ['sh', '-c', 'echo ready; sleep 100'])\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env={"PYTHONPATH": SOURCE}, stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as caller:  # fmt: skip
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"ready\n"
        caller.send_signal(signal.SIGINT)
        assert caller.stdout.readline() == b"interrupted\n"
    wait_for(lambda: not _processes_in(root))


def test_signals_ignored_by_python_are_not_ignored_by_the_command(root: Path) -> None:
    assert int(shell(root, "grep SigIgn /proc/self/status").split()[1], 16) == 0
    assert int(shell(root, "grep SigBlk /proc/self/status").split()[1], 16) == 0


def test_a_command_in_the_background_ignores_what_its_caller_does(root: Path) -> None:
    """A shell without job control, and nohup(1), start it so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ignored = int(shell(root, "grep SigIgn /proc/self/status").split()[1], 16)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ignored == 1 << (signal.SIGINT - 1)


def test_words_may_be_more_than_strings(root: Path) -> None:
    class Word(enum.StrEnum):
        ECHO = "echo"

    assert said(root, Word.ECHO, "hello") == "hello"
    assert shell(root, "pwd; echo $A", cwd=Path("/tmp"), env={"A": Word.ECHO}) == "/tmp\necho"


def test_no_open_file_of_the_caller_gets_in(root: Path) -> None:
    fd = os.open("/", os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        assert set(shell(root, "ls /proc/self/fd").split()) == {"0", "1", "2", "3"}
        assert set(shell(root, "ls /proc/1/fd", capabilities=["ALL"]).split()) <= {
            "0",
            "1",
            "2",
            "3",
        }
    finally:
        os.close(fd)


def test_from_a_thread(root: Path) -> None:
    outputs: list[str] = []
    thread = threading.Thread(target=lambda: outputs.append(said(root, "echo", "hello")))
    thread.start()
    thread.join()
    assert outputs == ["hello"]


def test_a_missing_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "missing", ["true"])


# --- the terminal


def on_terminal(root: Path, script: str) -> Terminal:
    return Terminal(
        "from lamina.sandbox.run import run; import os, sys\n"
        f"done = run({str(root)!r}, ['sh', '-c', {script!r}], forward_signals=True)\n"
        "print('foreground', os.tcgetpgrp(0) == os.getpgrp())\n"
        "sys.exit(done.returncode)"
    )


def test_the_terminal_is_passed_through(root: Path) -> None:
    terminal = on_terminal(root, "tty; echo $TERM; read line; echo got $line; exit 4")
    os.write(terminal.fd, b"something\n")
    terminal.read_until(b"foreground True")
    assert b"/dev/console" in terminal.output
    assert b"got something" in terminal.output
    assert terminal.wait() == 4


def test_ctrl_c_on_the_terminal_is_the_commands(root: Path) -> None:
    terminal = on_terminal(
        root, "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    )
    terminal.read_until(b"ready")
    os.write(terminal.fd, b"\x03")
    terminal.read_until(b"foreground True")
    assert terminal.output.count(b"caught") == 1
    assert b"Traceback" not in terminal.output
    assert terminal.wait() == 9


def test_an_interactive_shell_gives_the_terminal_back(root: Path) -> None:
    terminal = Terminal(
        "from lamina.sandbox.run import run; import os\n"
        f"run({str(root)!r}, ['sh', '-i', '-m'], forward_signals=True)\n"
        "print('foreground', os.tcgetpgrp(0) == os.getpgrp())\n"
    )
    os.write(terminal.fd, b"sleep 0.1 &\nfg\necho still $((40 + 2))\nexit\n")
    terminal.read_until(b"still 42")
    terminal.read_until(b"foreground True")
    assert terminal.wait() == 0


# --- ordinary users


@pytest.fixture
def user_root(small_root: Path, ordinary_user: User) -> Path:
    path = ordinary_user.home / "root"
    shutil.copytree(small_root, path)
    for directory, names, files in os.walk(path):
        for name in (".", *names, *files):
            os.chown(os.path.join(directory, name), ordinary_user.uid, ordinary_user.gid)
    return path


def test_an_ordinary_user_is_root_inside(user_root: Path, ordinary_user: User) -> None:
    before = tree(user_root)
    for network in ("none", "host"):
        script = (
            "id -u; echo $HOME; ls /dev/null; cat /proc/1/status | grep CapBnd; ls -d /sys/class"
        )
        lines = ordinary_user.call(shell, user_root, script, network=network).splitlines()
        assert lines[:3] == ["0", "/root", "/dev/null"]
        assert lines[-1] == "/sys/class"
        assert tree(user_root) == before


def test_an_ordinary_user_has_no_other_ids(user_root: Path, ordinary_user: User) -> None:
    with pytest.raises(UnmappedId, match="1000"):
        ordinary_user.call(said, user_root, "true", user="ann")


def test_root_of_a_user_namespace_made_before(user_root: Path, ordinary_user: User) -> None:
    code = (
        "import os; from pathlib import Path\n"
        "from lamina.kernel import namespaces\n"
        "from lamina.sandbox.run import run\n"
        "uid, gid = os.getuid(), os.getgid()\n"
        "namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)\n"
        "namespaces.write_own_maps('self', [f'0 {uid} 1'], [f'0 {gid} 1'])\n"
        "for network in ('none', 'host'):\n"
        f"    run(Path({str(user_root)!r}), ['sh', '-c', 'id -u; ls -d /sys/class /dev/null'],\n"
        "        network=network, check=True)\n"
        "try:\n"
        f"    run(Path({str(user_root)!r}), ['true'], user='ann')\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    before = tree(user_root)
    done = ordinary_user.run([ordinary_user.python, "-S", "-c", code])
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert lines[:3] * 2 == lines[:6] == ["0", "/dev/null", "/sys/class"] * 2
    assert "1000:1000" in lines[6] and "user namespace" in lines[6]
    assert tree(user_root) == before


def test_an_id_map_with_ranges(root: Path) -> None:
    ranges = (IdRange(0, 0, 1), IdRange(1, 100000, 65536))
    script = "id -u; id -g; readlink /proc/self/ns/user"
    lines = shell(root, script, idmap=IdMap(ranges, ranges), user="ann").splitlines()
    assert lines[:2] == ["1000", "1000"]
    assert lines[2] != os.readlink("/proc/self/ns/user")
