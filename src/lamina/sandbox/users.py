"""Users and groups as the root's own /etc/passwd and /etc/group have them."""

from __future__ import annotations

import os
from typing import NamedTuple

from lamina.errors import UserNotFound
from lamina.kernel.path import open_in_root

_LIMIT = 1 << 20


class Identity(NamedTuple):
    """Who a command runs as; ``groups`` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def look_up(root_fd: int, user: str | None) -> Identity:
    """``user`` as Docker takes it: ``name|uid[:group|gid]``, None or empty for root.

    A number needs no entry in the files. Supplementary groups come from /etc/group unless a
    group is named. Raises UserNotFound for a name that has no entry.
    """
    name, _, group = (user or "0").partition(":")
    entry = _passwd_entry(root_fd, name or "0")
    if entry is not None:
        uid, gid, home = int(entry[2]), int(entry[3]), entry[5]
    elif (name or "0").isdigit():
        uid, gid, home = int(name or "0"), 0, "/"
    else:
        raise UserNotFound(name, "/etc/passwd")
    groups: list[int] = []
    if group:
        gid = _group_id(root_fd, group)
    elif entry is not None:
        groups = [
            int(fields[2])
            for fields in _entries(root_fd, b"etc/group", 4)
            if entry[0] in fields[3].split(",") and fields[2].isdigit()
        ]
    return Identity(uid, gid, tuple(dict.fromkeys((gid, *groups))), home or "/")


def _passwd_entry(root_fd: int, name: str) -> list[str] | None:
    """By name first, then by number, as Docker looks."""
    by_uid = None
    for fields in _entries(root_fd, b"etc/passwd", 6):
        if not (fields[2].isdigit() and fields[3].isdigit()):
            continue
        if fields[0] == name:
            return fields
        if by_uid is None and fields[2] == name:
            by_uid = fields
    return by_uid


def _group_id(root_fd: int, group: str) -> int:
    for fields in _entries(root_fd, b"etc/group", 4):
        if fields[0] == group and fields[2].isdigit():
            return int(fields[2])
    if group.isdigit():
        return int(group)
    raise UserNotFound(group, "/etc/group")


def _entries(root_fd: int, path: bytes, width: int) -> list[list[str]]:
    """The lines of at least ``width`` fields; none when there is no such regular file."""
    try:
        # Not blocking: a root that is not ours may have a FIFO there.
        fd = open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return []
    with open(fd, "rb") as file:
        text = os.fsdecode(file.read(_LIMIT))
    lines = (line.strip().split(":") for line in text.split("\n"))
    return [fields for fields in lines if len(fields) >= width]
