"""A Debian root file system as a tar: the real input of tests and benchmarks.

Made by mmdebstrap from the distribution's own package sources as this machine has them
configured (on Ubuntu it is an Ubuntu root), and kept in a cache under the hash of the
recipe: ``$XDG_CACHE_HOME/lamina-tests`` or, where that is not set, ``.cache`` in the
repository. ``python -m tests.debian`` prints its path.

Programs of the next Debian, which are newer than those of this machine, come the same way.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import support

PACKAGES = ("python3", "git")
NEXT = "trixie"
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


class Unavailable(Exception):
    """What could not be had from Debian's archive, and why."""


def unpacked(package: str) -> Path:
    """A directory with a package of Debian 13 and what it needs: unpacked, not installed.

    Cached; made now if it is not there (some ten seconds, needs the network).

    Raises:
        Unavailable: this machine is no Debian, or its archive can't be reached.
    """
    target = _cache() / f"{package}-{NEXT}"
    with _locked(target.with_suffix(".lock")):
        if not target.exists():
            try:
                _unpack(package, target)
            except (OSError, subprocess.CalledProcessError) as error:
                said = (getattr(error, "stderr", None) or b"").decode()[-300:]
                raise Unavailable(f"{package} of Debian 13: {error} {said}".strip()) from error
    return target


def _unpack(package: str, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    archives = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    main = [uri for uri in sorted(set(archives)) if "security" not in uri]
    sources = f"deb {main[0] if main else ''} {NEXT} main\n"
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={package}", NEXT]
    with _scratch() as env:
        subprocess.run(
            [*command, part, "-"], input=sources.encode(), env=env, check=True, capture_output=True
        )
    part.rename(target)


def _make(command: list[str], sources: str, target: Path) -> None:
    part = target.with_suffix(".part.tar")
    with _scratch() as env:
        support.run(*command, part, "-", input=sources.encode(), env=env)
    part.rename(target)


@contextmanager
def _scratch() -> Iterator[dict[str, str]]:
    """The environment of mmdebstrap, with a place that apt's own user may enter."""
    with tempfile.TemporaryDirectory(prefix="mmdebstrap-", dir="/var/tmp") as scratch:
        Path(scratch).chmod(0o755)
        yield {
            **os.environ, "SOURCE_DATE_EPOCH": _EPOCH, "TMPDIR": scratch, "LC_ALL": "C.UTF-8",
        }  # fmt: skip


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
