"""Debian 13's ``mkfs.erofs``, which reads tars; Debian 12 has an older one that doesn't."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.ground import output, tool
from tests import debian


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


def find() -> Mkfs | None:
    """It, from the cache or the network; None, and a word of why, where it can't be had."""
    try:
        return Mkfs(debian.unpacked("erofs-utils"))
    except debian.Unavailable as error:
        print(f"no mkfs.erofs to compare with: {error}", file=sys.stderr)
        return None
