"""Image names as people type them."""

from __future__ import annotations

import re

from lamina.errors import InvalidName

# The grammar of github.com/distribution/reference, without digests.
_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?/)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"({_HOST}{_COMPONENT}(?:/{_COMPONENT})*)(?::([\w][\w.-]{{0,127}}))?", re.ASCII)
_LONGEST = 255


def normalize(name: str) -> str:
    """``debian`` is ``debian:latest``; ``debian:12`` stays.

    Raises :class:`InvalidName` for what the reference grammar does not allow (upper case in a
    repository, spaces, control characters, more than 255 characters).
    """
    match = _NAME.fullmatch(name) if len(name) <= _LONGEST + 129 else None
    if match is None or len(match[1]) > _LONGEST:
        raise InvalidName(
            f"not an image name: {name[:100]!r} (lower-case letters, digits and ._-/, "
            "then perhaps :tag)"
        )
    return f"{match[1]}:{match[2] or 'latest'}"
