"""The rules of tests/plugin.py hold: each broken test here is run in a pytest of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import support, users

REPOSITORY = Path(__file__).resolve().parent.parent


def run_pytest(directory: Path, source: str, *args: str, **env: str) -> tuple[int, str]:
    """Exit status and output of pytest, with our rules, on one file of tests."""
    file = directory / "test_inner.py"
    file.write_text(textwrap.dedent(source))
    config = directory / "pytest.ini"
    config.write_text("[pytest]\nmarkers =\n    root: x\n    slow: x\naddopts = -ra\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.plugin", "-p", "no:cacheprovider"]
    command += ["-c", str(config), "--rootdir", str(directory), *args, str(file)]
    outer = {k: v for k, v in os.environ.items() if k not in ("CI", "LAMINA_CI")}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=outer | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_leak_fails_the_test_that_made_it(tmp_path: Path) -> None:
    source = """
    import os, subprocess, threading, time

    def test_file():
        os.open("/dev/null", os.O_RDONLY)

    def test_daemon():
        subprocess.run(["sh", "-c", "sleep 6 </dev/null >/dev/null 2>&1 &"], check=True)

    def test_thread():
        threading.Thread(target=time.sleep, args=(4,), daemon=True).start()

    def test_innocent():
        pass
    """
    status, output = run_pytest(tmp_path, source)
    assert status == 1
    assert "4 passed, 3 errors" in output
    for left in ("file descriptor", "child process", "thread"):
        assert f"the test left behind:\n  {left}" in output


@pytest.mark.root
@pytest.mark.parametrize("what", ["mount", "loop device"])
def test_a_left_mount_or_loop_device_fails_and_is_unmounted_at_the_end(
    what: str, tmp_path: Path
) -> None:
    support.need("losetup")
    source = """
    import subprocess

    def test_mount(tmp_path):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)

    def test_loop_device(tmp_path):
        image = tmp_path / "image"
        image.write_bytes(bytes(1 << 20))
        subprocess.run(["losetup", "-f", image], check=True)
    """
    status, output = run_pytest(tmp_path, source, "-k", what.replace(" ", "_"))
    for line in output.splitlines():
        if line.startswith("  loop device"):
            subprocess.run(["losetup", "-d", line.split()[2]], check=True)
    assert status == 1
    assert f"the test left behind:\n  {what}" in output
    found = re.search(r"left behind:\n.*?(/\S*lamina-tests-\w+)/", output)
    assert found
    assert found[1] not in Path("/proc/self/mountinfo").read_text()
    assert not Path(found[1]).exists()


def test_an_unexpected_warning_in_the_log_fails(tmp_path: Path) -> None:
    source = """
    import logging, pytest

    def test_noisy():
        logging.getLogger("lamina.x").warning("odd thing")

    @pytest.mark.allow_log("odd thing")
    def test_announced():
        logging.getLogger("lamina.x").warning("odd thing")

    def test_looks_itself(caplog):
        logging.getLogger("lamina.x").warning("odd thing")
        assert "odd" in caplog.text
    """
    status, output = run_pytest(tmp_path, source)
    assert status == 1
    assert "WARNING lamina.x: odd thing" in output
    assert "3 passed, 1 error" in output


def test_a_missing_tool_skips_here_and_fails_in_ci(tmp_path: Path) -> None:
    source = """
    from tests.support import need

    def test_tool():
        need("sh", "no-such-tool")
    """
    status, output = run_pytest(tmp_path, source)
    assert (status, "needs no-such-tool (not installed)" in output) == (0, True)
    status, output = run_pytest(tmp_path, source, LAMINA_CI="1")
    assert (status, "in CI this must be there: needs no-such-tool" in output) == (1, True)


def test_a_test_for_root_is_skipped_for_others_and_stops_ci(tmp_path: Path) -> None:
    source = """
    import pytest
    from tests import plugin, support

    @pytest.mark.root
    def test_mounting(tmp_path): pass
    """
    (tmp_path / "conftest.py").write_text(
        "from tests import support\nsupport.is_root = lambda: False\n"
    )
    status, output = run_pytest(tmp_path, source)
    assert (status, "1 skipped" in output, "needs root" in output) == (0, True, True)
    status, output = run_pytest(tmp_path, source, LAMINA_CI="1")
    assert (status, "in CI this must be root: 1 tests need it" in output) == (4, True)


def test_slow_tests_run_only_when_asked(tmp_path: Path) -> None:
    source = """
    import pytest

    @pytest.mark.slow
    def test_long(): pass
    """
    assert "1 skipped" in run_pytest(tmp_path, source)[1]
    assert "1 passed" in run_pytest(tmp_path, source, "--slow")[1]


def test_the_ordinary_user_has_no_rights_and_a_home(ordinary_user: users.User) -> None:
    assert ordinary_user.call(os.geteuid) == ordinary_user.uid != 0
    done = ordinary_user.run(["sh", "-c", "echo x > file && cat file && echo $HOME"])
    assert done.stdout.decode().split() == ["x", str(ordinary_user.home)]
    with pytest.raises(PermissionError):
        ordinary_user.call(os.listdir, "/proc/1/fd")


def test_the_ordinary_user_reaches_python_and_the_package(ordinary_user: users.User) -> None:
    source = "import lamina.errors, wave, pytest; print(lamina.__version__)"
    done = ordinary_user.run([ordinary_user.python, "-c", source])
    assert (done.stdout, done.stderr) == (b"0.1.0\n", b"")
    assert ordinary_user.call(_import_something_new) == "wave"


def _import_something_new() -> str:
    import wave

    return wave.__name__


@pytest.mark.root
@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs"])
def test_a_loop_file_system_is_what_it_says(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    done = support.run("stat", "-f", "-c", "%T", path)
    assert done.stdout.decode().strip() in (name, f"{name[:3]}2/ext3")
    assert list(path.iterdir()) == []


@pytest.mark.root
def test_the_small_tmpfs_is_soon_full(tmpfs_small: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (tmpfs_small / "big").write_bytes(bytes(5 << 20))
