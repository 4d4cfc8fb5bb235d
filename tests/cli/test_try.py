"""``lamina try``, without a terminal and on one."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.users import User

pytestmark = pytest.mark.root

SCRIPT = "echo more >> a; rm b; mkdir new; echo out; echo 12345 > new/file; exit 3"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with two files."""
    path = tmp_path / "place"
    path.mkdir()
    (path / "a").write_text("a\n")
    (path / "b").write_text("b\n")
    return path


def state(place: Path) -> dict[str, str]:
    return {str(p.relative_to(place)): p.read_text() for p in place.rglob("*") if p.is_file()}


BEFORE = {"a": "a\n", "b": "b\n"}
AFTER = {"a": "a\nmore\n", "new/file": "12345\n"}


def test_without_a_terminal_it_shows_and_discards(cli: Cli, place: Path) -> None:
    done = cli.process("try", "--", "sh", "-c", SCRIPT, cwd=place)
    assert (done.returncode, done.stdout) == (3, "out\n")
    lines = done.stderr.splitlines()
    assert lines[-1] == "lamina: discarded"
    assert f"C {place}/a   7B" in lines
    assert f"D {place}/b" in lines
    assert f"A {place}/new" in lines
    assert f"A {place}/new/file   6B" in lines
    assert state(place) == BEFORE
    assert os.listdir(cli.root / "staging") == []


def test_quiet_says_nothing(cli: Cli, place: Path) -> None:
    done = cli.process("--quiet", "try", "--discard", "--", "touch", "x", cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_changed_is_said(cli: Cli) -> None:
    done = cli.process("try", "--", "true")
    assert (done.returncode, done.stderr) == (0, "lamina: nothing changed\n")


def test_apply_does_it_to_the_machine(cli: Cli, place: Path) -> None:
    done = cli.process("try", "--apply", "--in", place, "--", "sh", "-c", SCRIPT, cwd=place)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "lamina: applied"
    assert state(place) == AFTER


def test_apply_is_not_stopped_halfway(cli: Cli, place: Path) -> None:
    count = 3000
    script = f"i=0; while [ $i -lt {count} ]; do echo $i > {place}/f$i; i=$((i+1)); done"
    with subprocess.Popen(
        cli.argv("--quiet", "try", "--apply", "--in", place, "--", "sh", "-c", script),
        env=cli.env,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while len(os.listdir(place)) == len(BEFORE):
            assert process.poll() is None, "ended before anything was applied"
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "lamina: applying: can't stop halfway\n")
    assert len(os.listdir(place)) == count + len(BEFORE)


def test_apply_refuses_what_changed_meanwhile(cli: Cli, place: Path) -> None:
    script = "echo mine > a; echo ready; read x"
    with subprocess.Popen(
        cli.argv("try", "--apply", "--in", place, "--", "sh", "-c", script),
        env=cli.env,
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (place / "a").write_text("theirs")
        _, stderr = process.communicate("\n", timeout=60)
    assert process.returncode == 125
    assert stderr.splitlines()[-1] == f"lamina: not applied, changed meanwhile: {place}/a"
    assert (place / "a").read_text() == "theirs"


def test_in_leaves_the_rest_read_only(cli: Cli, place: Path) -> None:
    (place / "inner").mkdir()
    script = "echo x > x; echo y > /etc/lamina-test"
    done = cli.process(
        "try", "--json", "--in", place / "inner", "--", "sh", "-c", script, cwd=place / "inner"
    )
    assert "Read-only file system" in done.stderr
    paths = {change["path"] for change in json.loads(done.stdout)["changes"]}
    assert f"{place}/inner/x" in paths
    assert "/etc/lamina-test" not in paths


def test_json_has_the_changes_the_status_and_the_outcome(cli: Cli, place: Path) -> None:
    done = cli.process("try", "--json", "--", "sh", "-c", SCRIPT, cwd=place)
    assert done.stderr == "out\n"
    told = json.loads(done.stdout)
    assert (told["status"], told["outcome"], told["image"]) == (3, "discarded", None)
    assert {"path": f"{place}/new/file", "kind": "A", "size": 6} in told["changes"]
    assert {"path": f"{place}/b", "kind": "D", "size": None} in told["changes"]


def test_keep_makes_an_image_of_the_changes(cli: Cli, place: Path) -> None:
    done = cli.process("try", "--keep", "tried:1", "--", "sh", "-c", SCRIPT, cwd=place)
    assert done.stderr.splitlines()[-1] == "lamina: kept as tried:1"
    assert state(place) == BEFORE
    cli("create", "--name", "look", "tried:1", "true")
    root = Path(cli("mount", "look").strip())
    assert (root / str(place)[1:] / "new/file").read_text() == "12345\n"
    assert not (root / "usr").exists()
    cli("umount", "look")


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["--keep", "Not A Name", "--", "true"], 125, "not an image name"),
        (["--apply", "--discard", "--", "true"], 125, "try: --keep, --apply and --discard"),
        (["--"], 125, "try: missing argument"),
        (["--", "no-such-command"], 127, "no-such-command: command not found"),
        (["--", "/etc/passwd"], 126, "/etc/passwd: Permission denied"),
    ],
)
def test_failures_have_statuses_like_runs(
    cli: Cli, args: list[str], status: int, said: str
) -> None:
    assert cli.fails("try", *args, status=status).startswith(said)


def test_an_ordinary_user_tries_what_they_could_have_written(ordinary_user: User) -> None:
    home = ordinary_user.home
    script = "echo mine > file; echo x > /etc/nonsense"
    argv = [ordinary_user.python, "-m", "lamina", "try", "--apply", "--", "sh", "-c", script]
    done = ordinary_user.run(argv, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert b"/etc/nonsense" in done.stderr
    assert done.stderr.endswith(b"lamina: applied\n")
    assert (home / "file").read_text() == "mine\n"
    assert (home / "file").stat().st_uid == ordinary_user.uid


class Terminal:
    """The command on a terminal of its own, with someone who types."""

    def __init__(self, cli: Cli, *args: str | Path, cwd: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(cwd)
                env = {**cli.env, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
                argv = cli.argv(*args)
                os.execve(argv[0], argv, env)
            finally:
                os._exit(99)
        self.text = ""

    def expect(self, pattern: str) -> None:
        """Read until something appears."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, f"no {pattern} in {self.text!r}"
            if not self._read():
                pytest.fail(f"ended without {pattern}: {self.text!r}")

    def type(self, line: str) -> None:
        os.write(self.fd, f"{line}\n".encode())

    def end(self) -> int:
        """Read all there is; the exit status."""
        while self._read():
            pass
        os.close(self.fd)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        select.select([self.fd], [], [], 5)
        try:
            data = os.read(self.fd, 4096)
        except OSError:  # EIO: the other end is closed
            return False
        self.text += re.sub(r"\x1b\[[0-9;]*m", "", data.decode())
        return bool(data)


def test_on_a_terminal_it_shows_a_tree_and_asks(cli: Cli, place: Path) -> None:
    terminal = Terminal(cli, "try", "--", "sh", "-c", SCRIPT, cwd=place)
    terminal.expect(r"discard\?.*: ")
    assert "A new/" in terminal.text
    assert "A file  6B" in terminal.text
    assert "D b" in terminal.text
    assert re.search(r"2 added, .* changed, 1 deleted; 13B in files", terminal.text)
    terminal.type("nonsense")
    terminal.expect("one of keep, apply, discard")
    terminal.type("d")
    assert terminal.end() == 3
    assert "lamina: discarded" in terminal.text
    assert state(place) == BEFORE


def test_the_answer_apply(cli: Cli, place: Path) -> None:
    terminal = Terminal(cli, "try", "--in", place, "--", "sh", "-c", SCRIPT, cwd=place)
    terminal.expect(r"discard\?.*: ")
    terminal.type("apply")
    assert terminal.end() == 3
    assert state(place) == AFTER


def test_after_a_conflict_it_asks_again(cli: Cli, place: Path) -> None:
    terminal = Terminal(cli, "try", "--in", place, "--", "sh", "-c", SCRIPT, cwd=place)
    terminal.expect(r"discard\?.*: ")
    (place / "a").write_text("theirs")
    terminal.type("a")
    terminal.expect(r"not applied, changed meanwhile: .*/a")
    terminal.expect(r"meanwhile(.|\n)*discard\?.*: ")
    terminal.type("k")
    terminal.expect("Name of the image: ")
    terminal.type("rescued")
    assert terminal.end() == 3
    assert cli.json("images")[0]["names"] == ["rescued:latest"]


def test_a_name_that_can_not_be_one_loses_nothing(cli: Cli, place: Path) -> None:
    terminal = Terminal(cli, "try", "--", "sh", "-c", SCRIPT, cwd=place)
    terminal.expect(r"discard\?.*: ")
    terminal.type("keep")
    terminal.expect("Name of the image: ")
    terminal.type("My Image")
    terminal.expect(r"not an image name: 'My Image'(.|\n)*Name of the image: ")
    terminal.type("mine")
    assert terminal.end() == 3
    assert cli.json("images")[0]["names"] == ["mine:latest"]


def test_a_keep_that_fails_can_be_tried_again(cli: Cli, place: Path) -> None:
    terminal = Terminal(cli, "try", "--", "sh", "-c", SCRIPT, cwd=place)
    terminal.expect(r"discard\?.*: ")
    (cli.root / "blobs").mkdir(exist_ok=True)
    (cli.root / "blobs/sha256").write_text("in the way of the image's config")
    terminal.type("keep")
    terminal.expect("Name of the image: ")
    terminal.type("mine")
    terminal.expect(r"mine(.|\n)*lamina: (.|\n)*discard\?.*: ")
    (cli.root / "blobs/sha256").unlink()
    terminal.type("apply")
    terminal.expect(r"put together for an image(.|\n)*discard\?.*: ")
    terminal.type("keep")
    assert terminal.end() == 3
    assert state(place) == BEFORE
    assert cli.json("images")[0]["names"] == ["mine:latest"]


def test_enter_and_the_end_of_input_discard(cli: Cli, place: Path) -> None:
    terminal = Terminal(cli, "try", "--", "touch", "x", cwd=place)
    terminal.expect(r"discard\?.*: ")
    terminal.type("")
    assert terminal.end() == 0
    terminal = Terminal(cli, "try", "--", "touch", "x", cwd=place)
    terminal.expect(r"discard\?.*: ")
    time.sleep(1)  # until it reads: a signal just before read(2) would wait for the next line
    os.write(terminal.fd, b"\x03")
    assert terminal.end() == 130
    assert state(place) == BEFORE
    assert os.listdir(cli.root / "staging") == []
