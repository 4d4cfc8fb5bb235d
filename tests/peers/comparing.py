"""What is not the same in two trees."""

from __future__ import annotations

from collections.abc import Collection

from tests.adopt.trees import Entry

IMPLIED = {"d", "names"}
"""Directories that layers of ``umoci insert`` go through without an entry of their own.

umoci and we leave them as they are below; docker, podman and containerd give them the time of
unpacking."""


def unlike(
    ours: dict[str, Entry], theirs: dict[str, Entry], *, undated: Collection[str] = ()
) -> list[str]:
    """One line for each name, and each of its fields, that is not the same.

    The times of ``undated`` names may differ.
    """
    lines = []
    for path in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(path), theirs.get(path)
        if one is None or other is None:
            lines.append(f"{path!r}: only in {'theirs' if one is None else 'ours'}")
            continue
        lines += [
            f"{path!r}: {key} is {one.get(key)!r}, not {other.get(key)!r}"
            for key in sorted(one.keys() | other.keys())
            if one.get(key) != other.get(key) and not (key == "mtime_ns" and path in undated)
        ]
    return lines
