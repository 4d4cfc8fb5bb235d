"""Debian 13's ``mkfs.erofs``, which reads tars; Debian 12 has an older one that doesn't."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.ground import output, tool

_SUITE = "trixie"


class Mkfs:
    """The program, run from below ``root`` with the libraries there."""

    def __init__(self, root: Path) -> None:
        loader = next(root.glob("usr/lib*/ld-linux-*.so.*"))
        libraries = next(root.glob("usr/lib/*-linux-gnu"))
        self._argv = (loader, "--library-path", libraries, root / "usr/bin/mkfs.erofs")
        self.version = "mkfs.erofs " + output(*self._argv, "-V").splitlines()[0].split()[-1]

    def index(self, tar: Path, target: Path) -> None:
        """Write the index of a tar."""
        tool(*self._argv, "--quiet", "--tar=i", target, tar)


def find(cache: Path) -> Mkfs | None:
    """It, unpacked into a directory of ``cache`` first if it is not there (needs the network).

    None, and a word of why, where it can't be had.
    """
    root = cache / f"erofs-utils-{_SUITE}"
    if not root.exists():
        part = root.with_name(f"{root.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        sources = f"deb {_archive()} {_SUITE} main\n"
        command = ["mmdebstrap", "--quiet", "--variant=extract", "--include=erofs-utils", _SUITE]
        try:
            subprocess.run(
                [*command, part, "-"], input=sources.encode(), capture_output=True, check=True
            )
        except subprocess.CalledProcessError as error:
            print(f"no mkfs.erofs to compare with: {error.stderr.decode()[-300:]}", file=sys.stderr)
            return None
        part.rename(root)
    return Mkfs(root)


def _archive() -> str:
    """Where this machine has its Debian packages from."""
    uris = output("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    found = [uri for uri in sorted(set(uris.split())) if "security" not in uri]
    return found[0] if found else ""
