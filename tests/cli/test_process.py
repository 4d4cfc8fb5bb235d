"""How the process ends: signals, a pipe that is gone, errors and tracebacks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lamina.cli.messages import message
from lamina.errors import InvalidArchive, MountError
from tests.cli.conftest import Cli


def start(cli: Cli, *args: str | Path, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        cli.argv(*args),
        env=cli.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def wait_for_staging(cli: Cli) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if any((cli.root / "staging").glob("*")):
            return
        time.sleep(0.02)
    pytest.fail("the import did not begin")


@pytest.mark.root
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_an_import_leaves_nothing(
    cli: Cli, small_tar: Path, number: signal.Signals, status: int
) -> None:
    with start(cli, "import", "-", "half") as process:
        assert process.stdin is not None
        process.stdin.write(small_tar.read_bytes()[:1_000_000])
        process.stdin.flush()
        wait_for_staging(cli)
        time.sleep(0.3)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == status
    assert stderr in (b"lamina: interrupted\n", b"lamina: ended by a signal\n")
    assert cli.json("images") == []
    found = cli.json("info")
    assert (found["layers"], found["containers"]) == (0, 0)


@pytest.mark.root
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_goes_to_the_command_that_is_run(
    cli: Cli, image: str, number: signal.Signals, status: int
) -> None:
    script = "echo up; exec sleep 60"
    with start(cli, "run", "--rm", image, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == status
    assert cli.json("ps", "-a") == []


@pytest.mark.root
def test_a_command_may_handle_the_signal_and_its_status_counts(cli: Cli, image: str) -> None:
    script = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    with start(cli, "run", "--rm", image, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        stdout, _ = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (9, b"bye\n")


def test_a_signal_that_was_ignored_stays_ignored(cli: Cli) -> None:
    script = 'trap "" INT; "$@" & sleep 0.2; kill -INT $!; wait $!'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *cli.argv("info")],
        env=cli.env,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0


def test_a_reader_that_goes_away_is_no_error(cli: Cli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        cli.argv("info"), env=cli.env, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error(cli: Cli) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            cli.argv("info"), env=cli.env, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"lamina: No space left on device\n"


def test_debug_shows_the_traceback_and_the_line(cli: Cli) -> None:
    done = cli.process("--debug", "diff", "nosuch")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lamina: no such container: nosuch")


def test_a_store_by_a_newer_lamina_is_one_line(cli: Cli) -> None:
    import sqlite3

    cli("images")
    database = sqlite3.connect(cli.root / "lamina.db")
    database.execute("PRAGMA user_version = 9999")
    database.commit()
    database.close()
    assert "newer" in cli.fails("images")


def test_a_root_that_is_a_file_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cli.fails("--root", tmp_path / "file", "images")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file", b"/a\xff"), "/a\udcff: No such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (InvalidArchive("cut short", b"etc/x"), "invalid archive at entry 'etc/x': cut short"),
        (MountError(22, "overlay", "/m", ("why",)), "overlay: Invalid argument: /m (why)"),
        (MemoryError(), "out of memory"),
    ],
)
def test_errors_are_told_by_what_a_person_knows(error: Exception, text: str) -> None:
    assert message(error) == text


def test_a_bug_is_told_as_one() -> None:
    assert message(ZeroDivisionError("by zero")).startswith(
        "internal error: ZeroDivisionError: by zero"
    )
