"""What tests ask of the machine, and the things they stand on.

On a user's machine a test that lacks something is skipped, with the reason. Where
``LAMINA_CI=1`` or ``CI=true`` is set, everything that can be installed is there, so
that lacking it is a failure: a suite that silently tests nothing is worse than a red one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest

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
