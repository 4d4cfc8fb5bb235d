"""A Debian root file system as a tar: the real input of tests and benchmarks.

Made by mmdebstrap from the distribution's own package sources as this machine has them
configured (on Ubuntu it is an Ubuntu root), and kept in a cache under the hash of the
recipe: ``$XDG_CACHE_HOME/lamina-tests`` or, where that is not set, ``.cache`` in the
repository. ``python -m tests.debian`` prints its path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import support

PACKAGES = ("python3", "git")
_EPOCH = "1700000000"  # mmdebstrap clamps times to it, so the tar differs only by packages
_ARCHIVES = re.compile(r"^[a-z+]+:/.+/(debian|debian-security|ubuntu|ubuntu-ports)/?$")


def root_tar() -> Path:
    """The cached tar, made now if it is not there (about a minute, needs the network)."""
    support.need("mmdebstrap", "apt-get")
    suite, sources = _suite(), _sources()
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        suite,
    ]
    recipe = hashlib.sha256("\0".join([*command, sources, _EPOCH]).encode()).hexdigest()
    target = _cache() / f"root-{suite}-{recipe[:16]}.tar"
    with _locked(target.with_suffix(".lock")):
        if not target.exists():
            _make(command, sources, target)
    return target


def _make(command: list[str], sources: str, target: Path) -> None:
    part = target.with_suffix(".part.tar")
    with tempfile.TemporaryDirectory(prefix="mmdebstrap-", dir="/var/tmp") as scratch:
        Path(scratch).chmod(0o755)
        support.run(
            *command,
            part,
            "-",
            input=sources.encode(),
            env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH, "TMPDIR": scratch, "LC_ALL": "C.UTF-8"},
        )
    part.rename(target)


def _suite() -> str:
    release = Path("/etc/os-release").read_text()
    found = re.search(r'^VERSION_CODENAME="?(\w+)', release, re.MULTILINE)
    if found is None:
        support.missing("needs a Debian or Ubuntu release to make a Debian root from")
    return found[1]


def _sources() -> str:
    """The distribution's own entries of this machine's apt sources, as one-line entries.

    Other repositories (for compilers, cloud tools) have no place in the root, and their
    keys lie where mmdebstrap would have to be told.
    """
    lines = []
    index = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for line in sorted(set(index.splitlines())):
        _, uri, release, component = line.split("|")
        if _ARCHIVES.match(uri):
            lines.append(f"deb {uri.rstrip('/')} {release} {component}")
    if not lines:
        support.missing("needs apt sources of Debian or Ubuntu to make a Debian root from")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    repository = Path(__file__).resolve().parent.parent
    path = Path(home) / "lamina-tests" if home else repository / ".cache"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, so that two test runs at once make the tar once."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


if __name__ == "__main__":
    print(root_tar())
