"""Mounting what a driver says, as its clients do: by mount(8)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from tests import support


class Mountable(Protocol):
    """A driver's mount, or a protocol's message."""

    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def options(self) -> Sequence[str]: ...


@contextmanager
def mounted(mounts: Sequence[Mountable], target: Path) -> Iterator[Path]:
    """Mount them over each other at ``target``, a new directory."""
    target.mkdir()
    with ExitStack() as stack:
        stack.callback(target.rmdir)
        for mount in mounts:
            options, common = compact(mount.options)
            kind = ["--rbind"] if mount.type == "bind" else ["-t", mount.type]
            plain = [option for option in options if option not in ("bind", "rbind", "rw")]
            words = ["-o", ",".join(plain)] if plain else []
            support.run("mount", *kind, *words, mount.source, target, cwd=common)
            stack.callback(support.run, "umount", target)
        yield target


def compact(options: Sequence[str]) -> tuple[list[str], str]:
    """Make a long lowerdir relative to what its paths share, as containerd does."""
    lowers = next((o for o in options if o.startswith("lowerdir=")), "").removeprefix("lowerdir=")
    paths = lowers.split(":")
    if len(paths) < 2:
        return list(options), "/"
    common = os.path.commonpath(paths)
    short = "lowerdir=" + ":".join(os.path.relpath(path, common) for path in paths)
    return [short if o.startswith("lowerdir=") else o for o in options], common
