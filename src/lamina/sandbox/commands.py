"""Whether a command is in a root: asked before an OCI runtime is.

What runc and crun say of a command that is missing has no form of its own, and the exit status is
the same as of any other failure. Who runs a command wants to know (126 and 127, as a shell has it).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lamina.errors import CommandNotFound
from lamina.kernel.path import open_in_root
from lamina.sandbox.child import DEFAULT_PATH

_MOUNTED = ("/proc/", "/sys/", "/dev/")


class Finding(NamedTuple):
    """Why a command can't be run; ``certain`` if nothing that was not looked at may change it."""

    error: CommandNotFound
    certain: bool


def find(spec: Mapping[str, Any]) -> Finding | None:
    """What is wrong with the command of ``spec`` (as ``run`` makes it), if anything is.

    What is mounted into the container, access lists and id maps are not looked at.
    """
    name: str = spec["argv"][0]
    if not name:
        return Finding(CommandNotFound("an empty command can't be run"), certain=True)
    root_fd = os.open(spec["root"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = _modes(root_fd, name, spec)
    finally:
        os.close(root_fd)
    if found is None or any(_may_execute(status, spec) for status in found):
        return None
    if not found:
        return Finding(CommandNotFound(f"{name}: command not found", 127), not spec["binds"])
    certain = not spec["binds"] and not any(_is_program(status) for status in found)
    return Finding(CommandNotFound(f"{name}: {os.strerror(errno.EACCES)}", 126), certain)


def _modes(root_fd: int, name: str, spec: Mapping[str, Any]) -> list[os.stat_result] | None:
    """The files that may be meant; None if one may be on a file system that is not there yet."""
    found = []
    for path in _candidates(name, spec):
        if path.startswith(_MOUNTED):
            return None
        try:
            fd = open_in_root(root_fd, os.fsencode(path.lstrip("/")), os.O_PATH)
        except OSError:
            continue
        try:
            found.append(os.fstat(fd))
        finally:
            os.close(fd)
    return found


def _candidates(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    places = [""] if "/" in name else spec["env"].get("PATH", DEFAULT_PATH).split(":")
    for place in places:
        yield os.path.join("/", spec["cwd"], place, name)


def _is_program(status: os.stat_result) -> bool:
    """Whether anyone may execute it; root may not, either, if nobody may."""
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)


def _may_execute(status: os.stat_result, spec: Mapping[str, Any]) -> bool:
    if not _is_program(status) or spec["uid"] == 0 or spec["uid_map"]:
        return _is_program(status)
    if status.st_uid == spec["uid"]:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid in (spec["gid"], *spec["groups"]):
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
