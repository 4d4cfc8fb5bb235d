"""What tests ask of the machine, and the things they stand on.

On a user's machine a test that lacks something is skipped, with the reason. Where
``LAMINA_CI=1`` or ``CI=true`` is set, everything that can be installed is there, so
that lacking it is a failure: a suite that silently tests nothing is worse than a red one.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import pytest

P = ParamSpec("P")
R = TypeVar("R")

_CAP_SYS_ADMIN = 21
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def in_ci() -> bool:
    """Whether a missing tool is a failure here."""
    return os.environ.get("LAMINA_CI") == "1" or os.environ.get("CI", "").lower() in ("1", "true")


def missing(reason: str) -> NoReturn:
    """Skip this test, or fail it in CI: something that could be installed is not there."""
    if in_ci():
        pytest.fail(f"in CI this must be there: {reason}", pytrace=False)
    pytest.skip(reason)


def need(*tools: str) -> None:
    """Ask for programs by name, looked up in PATH and the system directories."""
    path = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
    absent = [tool for tool in tools if shutil.which(tool, path=path) is None]
    if absent:
        missing(f"needs {', '.join(absent)} (not installed)")


def need_filesystem(name: str) -> None:
    """Ask for a file system of this kernel; a kernel can't be installed, so this only skips."""
    if not _has_filesystem(name):
        subprocess.run(
            ["modprobe", "-q", name], env={"PATH": _SYSTEM_PATH}, check=False, capture_output=True
        ) if shutil.which("modprobe", path=_SYSTEM_PATH) else None
    if not _has_filesystem(name):
        pytest.skip(f"this kernel has no {name}")


def _has_filesystem(name: str) -> bool:
    lines = Path("/proc/filesystems").read_text().splitlines()
    return any(line.split()[-1] == name for line in lines)


def is_root() -> bool:
    """Whether this process is root with the right to mount (in a container it may lack it)."""
    if os.geteuid() != 0:
        return False
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1)


def run(*argv: str | bytes | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a tool that must succeed; on failure the assertion shows what it wrote."""
    env = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}", "LC_ALL": "C"}
    options.setdefault("env", env)
    done = subprocess.run(argv, capture_output=True, check=False, **options)
    if done.returncode != 0:
        said = (done.stderr + done.stdout).decode(errors="backslashreplace").strip()
        pytest.fail(f"{argv[0]!s} exited with {done.returncode}: {said}")
    return done


@dataclass(frozen=True, slots=True)
class User:
    """An ordinary user to run things as. ``home`` is theirs, and can be reached by them."""

    uid: int
    gid: int
    home: Path

    def environment(self, extra: Mapping[str, str] = {}) -> dict[str, str]:
        """The process environment that this user has after logging in."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "LAMINA_ROOT"))},
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            **extra,
        }

    def run(
        self, argv: Sequence[str | bytes | Path], *, env: Mapping[str, str] = {}, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """``subprocess.run`` as this user, in their home, output captured unless asked else."""
        if os.geteuid() == 0:
            options.update(user=self.uid, group=self.gid, extra_groups=[])
        options.setdefault("cwd", self.home)
        if not {"stdout", "stderr"} & options.keys():
            options.setdefault("capture_output", True)
        return subprocess.run(argv, env=self.environment(env), check=False, **options)

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``function(...)`` in a child process that is this user; result or error come back.

        Both travel by pickle. A child's traceback is added to its exception as a note.
        """
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            _answer(write_end, lambda: self._become_and_call(function, *args, **kwargs))
        os.close(write_end)
        with os.fdopen(read_end, "rb") as answer:
            data = answer.read()
        _, status = os.waitpid(pid, 0)
        if not data:
            pytest.fail(f"the child died with wait status {status}")
        succeeded, value = pickle.loads(data)
        if not succeeded:
            raise value
        result: R = value
        return result

    def _become_and_call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
        environment = self.environment()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(self.home)
        return function(*args, **kwargs)


def _answer(fd: int, function: Callable[[], Any]) -> NoReturn:
    """Write what ``function`` gives or raises to the pipe and end this child at once."""
    try:
        try:
            data = pickle.dumps((True, function()))
        except BaseException as error:
            error.add_note(traceback.format_exc())
            try:
                data = pickle.dumps((False, error))
                pickle.loads(data)
            except Exception:
                data = pickle.dumps((False, RuntimeError(traceback.format_exc())))
        with os.fdopen(fd, "wb") as pipe:
            pipe.write(data)
    finally:
        os._exit(0)
