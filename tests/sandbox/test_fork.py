from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lamina.archive.whiteout import OVERLAY
from lamina.errors import ApplyConflict, CommandNotFound
from lamina.kernel import mount
from lamina.sandbox import fork as fork_module
from lamina.sandbox.fork import Fork, fork_machine
from tests.sandbox.terminal import Terminal
from tests.users import User

SOURCE = str(Path(fork_module.__file__).parents[2])

pytestmark = pytest.mark.root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of the machine for commands to change; the fork's own is elsewhere."""
    path = tmp_path / "place"
    (path / "sub/deep").mkdir(parents=True)
    (path / "file").write_text("old")
    (path / "gone").write_text("old")
    (path / "sub/file").write_text("old")
    (path / "sub/deep/file").write_text("old")
    (path / "link").symlink_to("file")
    return path


@pytest.fixture
def fork(place: Path, tmp_path: Path) -> Iterator[Fork]:
    with fork_machine(tmp_path / "store/fork", hide=[tmp_path / "store"]) as made:
        yield made


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def shell(fork: Fork, script: str, **options: object) -> str:
    argv = ["sh", "-ec", script]
    done = fork.run(argv, stdout=subprocess.PIPE, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done
    assert done.stdout is not None
    return done.stdout.decode().strip()


def changes(fork: Fork, place: Path) -> list[str]:
    """Changes in ``place``, by their path from there. (The machine is busy elsewhere too.)"""
    prefix = os.fsencode(place) + b"/"
    return [
        f"{c.kind} {os.fsdecode(c.path.removeprefix(prefix))}"
        for c in fork.changes()
        if c.path.startswith(prefix)
    ]


def outside() -> None:
    """Let file system clocks go on, then any change counts as one since the fork began."""
    time.sleep(0.02)


# --- the command and the machine


def test_the_command_writes_to_the_fork_alone(fork: Fork, place: Path) -> None:
    os.chdir(place)
    shell(fork, "echo new >file; rm gone; mkdir made; echo x >made/x; rm -r sub; mkdir sub; ls -l")
    assert (place / "file").read_text() == "old"
    assert (place / "gone").exists() and (place / "sub/deep/file").exists()
    assert changes(fork, place) == [
        "C file", "D gone", "A made", "A made/x", "C sub", "D sub/deep", "D sub/file"
    ]  # fmt: skip
    sizes = fork.sizes()
    assert sizes[bytes(place / "file")] == 4
    assert bytes(place / "gone") not in sizes


def test_the_directories_above_a_change_are_listed(fork: Fork, place: Path, tmp_path: Path) -> None:
    shell(fork, f"echo new >{place}/sub/file")
    listed = {str(change) for change in fork.changes()}
    assert {
        f"C {place}/sub/file",
        f"C {place}/sub",
        f"C {place}",
        f"C {tmp_path}",
        "C /tmp",
    } <= listed


def test_the_command_is_in_the_callers_place(
    fork: Fork, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "sub")
    monkeypatch.setenv("SOME", "thing")
    script = (
        f"pwd; id -u; echo $SOME; uname -n; kill -0 {os.getpid()} && echo sees us; ls /proc/$$/exe"
    )
    lines = shell(fork, script).splitlines()
    assert lines[:5] == [f"{place}/sub", "0", "thing", os.uname().nodename, "sees us"]
    assert lines[5].endswith("/exe")
    assert shell(fork, "pwd; echo $SOME", cwd="/", env={"SOME": "other"}) == "/\nother"


def test_the_exit_status_is_the_commands(fork: Fork) -> None:
    assert fork.run(["sh", "-c", "exit 9"]).returncode == 9
    assert fork.run(["sh", "-c", "kill -9 $$"]).returncode == 137
    with pytest.raises(CommandNotFound) as caught:
        fork.run(["/no/such/command"])
    assert caught.value.exit_code == 127
    with pytest.raises(ValueError, match="empty"):
        fork.run([])


def test_proc_sys_and_dev_are_as_they_are(fork: Fork) -> None:
    own = os.readlink("/proc/self/ns/net")
    assert shell(fork, "readlink /proc/self/ns/net; echo x >/dev/null; ls /sys").startswith(own)


def test_the_store_is_not_to_be_seen(fork: Fork, store: Path) -> None:
    (store / "lamina.db").write_text("precious")
    assert shell(fork, f"ls -A {store}") == ""
    done = fork.run(
        ["sh", "-c", f"echo bad >{store}/lamina.db || rm -rf {store}"], stderr=subprocess.DEVNULL
    )
    assert done.returncode != 0
    assert [c for c in fork.changes() if c.path.startswith(bytes(store) + b"/")] == []
    assert (store / "lamina.db").read_text() == "precious"


def test_the_next_command_finds_what_the_first_one_did(fork: Fork, place: Path) -> None:
    shell(fork, f"echo new >{place}/file")
    assert shell(fork, f"cat {place}/file") == "new"


def test_what_the_command_leaves_running_is_ended(fork: Fork, place: Path) -> None:
    script = (
        "(setsid sh -c 'sleep 0.3; echo late >late; sleep 1000' &) ; setsid sleep 1001 & exit 0"
    )
    shell(fork, f"cd {place}; {script}")
    time.sleep(0.5)
    assert changes(fork, place) == []


def test_a_timeout(fork: Fork) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        fork.run(["sleep", "100"], timeout=0.5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_caller_leaves_a_work_directory_and_no_process(
    store: Path, number: signal.Signals
) -> None:
    code = (
        "import sys; from pathlib import Path; from lamina.sandbox.fork import fork_machine\n"
        f"fork = fork_machine(Path({str(store)!r}) / 'fork')\n"
        "fork.run(['sh', '-c', 'echo $$; exec sleep 100'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env={"PYTHONPATH": SOURCE}, stdout=subprocess.PIPE
    ) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        caller.send_signal(number)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.listdir(store) == ["fork"]
    shutil.rmtree(store / "fork")


def test_discard_leaves_nothing(store: Path, place: Path) -> None:
    with fork_machine(store / "fork") as fork:
        shell(fork, f"cd {place}; mkdir -p a/b; mknod pipe p; chmod 0 a")
    assert os.listdir(store) == []


# --- file systems


@pytest.fixture
def mounts(place: Path) -> Iterator[Path]:
    """``place`` with a tmpfs, a read-only tmpfs and a bound file in it."""
    for name in ("tmpfs", "ro"):
        (place / name).mkdir()
        mount.mount("none", place / name, "tmpfs")
        (place / name / "file").write_text("old")
    mount.mount_setattr(place / "ro", attr_set=mount.MOUNT_ATTR_RDONLY)
    (place / "bound").touch()
    mount.bind(place / "file", place / "bound")
    yield place
    for name in ("tmpfs", "ro", "bound"):
        mount.unmount(place / name)


def test_other_file_systems_are_forked_too(mounts: Path, fork: Fork) -> None:
    script = (
        f"cd {mounts}; echo new >tmpfs/file; echo new >tmpfs/new; "
        "echo x >ro/file || echo refused; echo x >bound || echo refused"
    )
    assert shell(fork, script, stderr=subprocess.DEVNULL) == "refused\nrefused"
    assert changes(fork, mounts) == ["C tmpfs", "C tmpfs/file", "A tmpfs/new"]
    assert (mounts / "tmpfs/file").read_text() == "old"
    fork.apply()
    assert (mounts / "tmpfs/file").read_text() == "new\n"
    assert sorted(os.listdir(mounts / "tmpfs")) == ["file", "new"]


def test_a_forked_directory_alone(place: Path, store: Path) -> None:
    other = place.parent / "other"
    other.mkdir()
    with fork_machine(store / "fork", only=place, hide=[store]) as fork:
        script = (
            f"echo new >{place}/file; echo x >{other}/x; echo x >/var/tmp/lamina-scratch; "
            "echo x >/etc/lamina-x || echo refused"
        )
        assert shell(fork, script, stderr=subprocess.DEVNULL) == "refused"
        listed = [str(c) for c in fork.changes() if c.kind != "C" or c.path >= bytes(place)]
        assert listed == [f"C {place}", f"C {place}/file"]
        fork.apply()
    assert (place / "file").read_text() == "new\n"
    assert os.listdir(other) == []
    assert not Path("/var/tmp/lamina-scratch").exists()


def test_only_what_is_a_directory_can_be_forked(place: Path, store: Path) -> None:
    with pytest.raises(NotADirectoryError):
        fork_machine(store / "fork", only=place / "file")
    assert os.listdir(store) == []


def test_the_classic_mount_takes_any_name(tmp_path: Path) -> None:
    lower = tmp_path / "a:b,c\\d e"
    for path in (lower, tmp_path / "0/upper", tmp_path / "0/work", tmp_path / "root"):
        path.mkdir(parents=True)
    (lower / "file").write_text("content")
    code = (
        "import os\n"
        "from lamina.kernel import mount, namespaces\n"
        "from lamina.sandbox.forked import _Machine\n"
        "namespaces.unshare(namespaces.CLONE_NEWNS)\n"
        "mount.make_private('/', recursive=True)\n"
        f"machine = _Machine({{'workdir': {str(tmp_path)!r}, 'user': False, 'steps': []}})\n"
        "machine.by_descriptor = False\n"
        f"machine.stack(os.fsencode({str(lower)!r}), b'/', 0)\n"
        f"print(os.listdir({str(tmp_path / 'root')!r}))\n"
    )
    argv = [sys.executable, "-S", "-c", code]
    done = subprocess.run(argv, env={"PYTHONPATH": SOURCE}, check=True, stdout=subprocess.PIPE)
    assert done.stdout == b"['file']\n"


def test_ctrl_c_on_the_terminal_is_the_commands(store: Path) -> None:
    script = "trap 'echo caught; exit 9' INT; tty; echo ready; while :; do sleep 0.1; done"
    terminal = Terminal(
        "from pathlib import Path; from lamina.sandbox.fork import fork_machine; import os, sys\n"
        "print('ours', os.ttyname(0))\n"
        f"with fork_machine(Path({str(store)!r}) / 'fork') as fork:\n"
        f"    done = fork.run(['sh', '-c', {script!r}], forward_signals=True)\n"
        "sys.exit(done.returncode)"
    )
    terminal.read_until(b"ready")
    _, ours, found, *_ = terminal.output.split()
    assert found == ours
    os.write(terminal.fd, b"\x03")
    terminal.read_until(b"caught")
    assert terminal.wait() == 9


# --- apply


def test_apply_does_to_the_machine_what_was_done_to_the_fork(fork: Fork, place: Path) -> None:
    untouched = (place / "link").lstat()
    shell(
        fork,
        f"cd {place}; echo new >file; rm gone; mkdir -m 700 made; echo x >made/x; "
        "ln made/x made/y; ln -s nowhere made/link; mv link renamed; "
        "rm -r sub; mkdir sub; echo y >sub/y",
    )
    assert fork.conflicts() == []
    fork.apply()
    assert (place / "file").read_text() == "new\n"
    assert sorted(os.listdir(place)) == ["file", "made", "renamed", "sub"]
    assert (place / "made").stat().st_mode & 0o7777 == 0o700
    assert (place / "made/x").stat().st_ino == (place / "made/y").stat().st_ino
    assert os.readlink(place / "made/link") == "nowhere"
    assert os.listdir(place / "sub") == ["y"]
    assert (place / "renamed").lstat().st_mtime_ns == untouched.st_mtime_ns
    for path in place.rglob("*"):
        assert not [x for x in os.listxattr(path, follow_symlinks=False) if "overlay" in x]


def refused(fork: Fork, place: Path) -> list[str]:
    """Apply, which must refuse; what it names in ``place``. Nothing may have changed."""
    before = sorted(place.rglob("*")), (place / "file").read_text()
    with pytest.raises(ApplyConflict) as caught:
        fork.apply()
    assert (sorted(place.rglob("*")), (place / "file").read_text()) == before
    return [os.path.relpath(os.fsdecode(path), place) for path in caught.value.paths]


def test_a_file_changed_on_both_sides_is_a_conflict(fork: Fork, place: Path) -> None:
    shell(fork, f"echo new >{place}/file; echo new >{place}/sub/file")
    outside()
    (place / "file").write_text("ours")
    assert refused(fork, place) == ["file"]


@pytest.mark.parametrize(
    ("done", "meanwhile", "expected"),
    [
        ("rm gone", "echo ours >gone", ["gone"]),
        ("echo x >made", "echo ours >made", ["made"]),
        ("mkdir made", "echo ours >made", ["made"]),
        ("mkdir made; echo x >made/x", "mkdir made; echo ours >made/x", ["made/x"]),
        ("rm -r sub", "echo ours >sub/deep/new", ["sub"]),
        ("rm -r sub; mkdir sub", "chmod 600 sub/deep/file", ["sub"]),
        ("rm -r sub; echo x >sub", "echo ours >sub/deep/file", ["sub"]),
        ("echo x >sub/deep/file", "rm -r sub/deep", ["sub/deep"]),
        ("echo x >sub/deep/file", "rm -r sub/deep; echo x >sub/deep", ["sub/deep"]),
        ("echo x >gone", "rm gone", ["gone"]),
        ("chmod 700 sub", "chmod 711 sub", ["sub"]),
        ("mv gone other", "echo x >gone", ["gone"]),
    ],
)
def test_conflicts(fork: Fork, place: Path, done: str, meanwhile: str, expected: list[str]) -> None:
    shell(fork, f"cd {place}; {done}")
    outside()
    subprocess.run(["sh", "-ec", meanwhile], check=True, cwd=place)
    assert refused(fork, place) == expected


@pytest.mark.parametrize(
    ("done", "meanwhile"),
    [
        ("echo x >sub/file", "echo ours >sub/new; echo ours >sub/deep/file"),
        ("echo x >made", "echo ours >unrelated; rm gone"),
        ("mv gone other", "true"),
        ("echo x >temporary; mv temporary file", "true"),
        ("rm gone", "rm gone"),
        ("echo -n >>file", "echo ours >gone"),
        ("mkdir -p made/x", "mkdir made"),
    ],
)
def test_what_is_no_conflict(fork: Fork, place: Path, done: str, meanwhile: str) -> None:
    shell(fork, f"cd {place}; {done}")
    outside()
    subprocess.run(["sh", "-ec", meanwhile], check=True, cwd=place)
    fork.apply()


def test_a_change_before_the_fork_is_none_of_its_business(place: Path, store: Path) -> None:
    (place / "file").write_text("just now")
    with fork_machine(store / "fork") as fork:
        shell(fork, f"echo new >{place}/file")
        fork.apply()
    assert (place / "file").read_text() == "new\n"


def test_gather_makes_one_layer(mounts: Path, fork: Fork, store: Path) -> None:
    shell(fork, f"cd {mounts}; echo new >file; rm gone; echo new >tmpfs/new")
    fork.gather(store / "layer")
    layer = store / f"layer{mounts}"
    assert (layer / "file").read_text() == "new\n"
    assert (layer / "tmpfs/new").read_text() == "new\n"
    fd = os.open(layer, os.O_RDONLY)
    try:
        assert OVERLAY.listing(fd).whiteouts == [b"gone"]
    finally:
        os.close(fd)
    for path in (layer, layer.parent, store / "layer/tmp"):
        original = Path("/") / path.relative_to(store / "layer")
        assert path.stat().st_mode == original.stat().st_mode


# --- ordinary users


def as_user(user: User, script: str, only: str | None = None, apply: bool = False) -> list[str]:
    """What the script printed and the changes, as lines; run by the user."""
    workdir = user.home / "store/fork"
    workdir.parent.mkdir(exist_ok=True)
    with fork_machine(workdir, only=Path(only) if only else None, hide=[workdir.parent]) as fork:
        lines = shell(fork, script, stderr=subprocess.STDOUT).splitlines()
        lines += [str(change) for change in fork.changes()]
        if apply:
            fork.apply()
    return lines


def test_an_ordinary_user_keeps_its_ids_and_forks_its_home(ordinary_user: User) -> None:
    home = ordinary_user.home
    script = (
        "id -u; cd; echo new >new; mkdir -p a/b; echo x >a/b/c; rm old; cat keep; "
        "echo x >/etc/lamina-x || echo refused; ls /proc/1/ >/dev/null; readlink /proc/self/ns/pid"
    )
    ordinary_user.call(_write, home / "old", "old")
    ordinary_user.call(_write, home / "keep", "kept")
    lines = ordinary_user.call(as_user, ordinary_user, script)
    assert lines[0] == str(ordinary_user.uid)
    assert lines[1].startswith("kept")
    assert "refused" in lines
    assert os.readlink("/proc/self/ns/pid") in lines
    for expected in (f"A {home}/new", f"A {home}/a/b/c", f"D {home}/old"):
        assert expected in lines
    assert sorted(os.listdir(home)) == ["keep", "old", "run", "store", "tmp"]


def test_an_ordinary_user_applies(ordinary_user: User) -> None:
    home = ordinary_user.home
    ordinary_user.call(_write, home / "old", "old")
    ordinary_user.call(
        as_user, ordinary_user, "cd; echo new >new; rm old; mkdir d; echo x >d/x", None, True
    )
    assert (home / "new").read_text() == "new\n"
    assert (home / "new").stat().st_uid == ordinary_user.uid
    assert (home / "d/x").exists() and not (home / "old").exists()


def test_what_can_not_be_applied_is_named_by_its_whole_path(ordinary_user: User) -> None:
    with pytest.raises(PermissionError) as caught:
        ordinary_user.call(as_user, ordinary_user, "echo x >/etc/lamina-x", "/etc", True)
    assert caught.value.filename == "/etc/lamina-x"


def test_an_ordinary_user_forks_temporary_directories(ordinary_user: User) -> None:
    name = f"/tmp/lamina-user-{os.getpid()}"
    lines = ordinary_user.call(as_user, ordinary_user, f"echo x >{name}; cat {name}")
    assert f"A {name}" in lines
    assert not Path(name).exists()


def test_an_ordinary_user_forks_one_directory(ordinary_user: User) -> None:
    home = ordinary_user.home
    ordinary_user.call(os.mkdir, home / "d")
    lines = ordinary_user.call(
        as_user, ordinary_user, "cd; echo x >d/x; echo x >y || echo refused", str(home / "d"), True
    )
    assert "refused" in lines[0] or "refused" in lines[1]
    assert f"A {home}/d/x" in lines
    assert (home / "d/x").exists() and not (home / "y").exists()


def test_mounts_below_a_users_home(ordinary_user: User) -> None:
    home = ordinary_user.home
    for name in ("old", "keep"):
        ordinary_user.call(_write, home / name, name)
    for name in ("mnt", "d"):
        ordinary_user.call(os.mkdir, home / name)
    ordinary_user.call(os.symlink, "old", home / "link")
    mount.mount("none", home / "mnt", "tmpfs", 0, f"uid={ordinary_user.uid},mode=755")
    try:
        script = (
            "cd; echo x >new; echo x >d/x; echo x >mnt/x; cat keep; readlink link; "
            "echo x >old || echo refused"
        )
        lines = ordinary_user.call(as_user, ordinary_user, script, None, True)
        assert lines[0] == "keepold"
        assert any("refused" in line for line in lines[1:3])
        for name in ("new", "d/x", "mnt/x"):
            assert f"A {home}/{name}" in lines
            assert (home / name).read_text() == "x\n"
        assert (home / "old").read_text() == "old"
    finally:
        mount.unmount(home / "mnt")


def test_what_an_ordinary_user_does_is_a_conflict_too(ordinary_user: User) -> None:
    def work(home: Path) -> list[bytes]:
        (home / "store").mkdir()
        (home / "file").write_text("old")
        with fork_machine(home / "store/fork", hide=[home / "store"]) as fork:
            shell(fork, "cd; echo new >file")
            outside()
            (home / "file").write_text("ours")
            return fork.conflicts()

    assert ordinary_user.call(work, ordinary_user.home) == [bytes(ordinary_user.home / "file")]


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_a_work_directory_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        fork_machine(tmp_path / "missing/fork")
    assert caught.value.errno == errno.ENOENT


# -- in a chroot

_CHROOT = """
cd "$1"; shift
mkdir -p usr etc proc dev tmp root var run
for name in bin sbin lib lib64; do ln -s usr/$name $name; done
mount --bind /usr usr; mount --bind /etc etc; mount -t proc proc proc; mount --rbind /dev dev
while [ "$1" != -- ]; do mkdir -p "./$1"; mount --rbind "$1" "./$1"; shift; done; shift
exec chroot . "$@"
"""


def _in_chroot(
    root: Path, *argv: str, before: Sequence[str] = (), setup: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``lamina`` in a chroot with this machine's programs."""
    root.mkdir()
    root.chmod(0o755)
    ours = [p for p in sys.path if p and os.path.isdir(p) and not p.startswith("/usr")]
    script = f"set -e\n{setup}\n{_CHROOT}"
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "bash", "-c", script, "bash", root,
         *ours, sys.prefix, "--", *before, sys.executable, "-m", "lamina", *argv],
        env={**os.environ, "HOME": "/tmp", "PYTHONPATH": os.pathsep.join(ours), "TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_a_plain_chroot_is_told_what_it_lacks(tmp_path: Path) -> None:
    done = _in_chroot(tmp_path / "plain", "try", "--discard", "--", "touch", "/x")
    assert done.returncode == 125
    assert "mount --bind DIR DIR" in done.stderr
    setup = 'mount --bind "$1" "$1"'
    done = _in_chroot(tmp_path / "bound", "try", "--discard", "--", "touch", "/x", setup=setup)
    assert "A /x" in done.stderr, done


@pytest.mark.parametrize("argv", [("try", "--discard", "--", "true"), ("unshare", "true")])
def test_a_user_in_a_chroot_is_told_that_the_kernel_refuses(
    tmp_path: Path, argv: tuple[str, ...]
) -> None:
    user = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    setup = 'install -d -m 1777 "$1/tmp"'
    done = _in_chroot(tmp_path / "plain", *argv, before=user, setup=setup)
    assert done.returncode != 0
    assert "the kernel refuses them in a chroot" in done.stderr
