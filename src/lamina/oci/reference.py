"""Image names as people type them, and what they are short for.

The grammar, the completion of short names (``debian`` is ``docker.io/library/debian:latest``) and
the way back are those of github.com/distribution/reference, which Docker and containerd use.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from lamina.errors import InvalidName, printable

DOCKER_HUB = "docker.io"
"""The registry of names that say none."""

_OLD_DOCKER_HUB = "index.docker.io"
_OFFICIAL = "library/"
_LATEST = "latest"

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")
_ID = re.compile(r"[0-9a-f]{64}")

_LONGEST = 255
"""Characters of a repository (without its registry), and of a registry with its port."""

_LONGEST_TEXT = 2 * _LONGEST + 128 + 136 + 3
_SHAPE = "[REGISTRY[:PORT]/]NAME[:TAG][@DIGEST], as in debian:12"


class Reference(NamedTuple):
    """The name of an image, complete.

    ``tag`` is None only where there is a digest. With both, the digest decides and the tag is
    what people read.
    """

    registry: str
    """Host, perhaps with ``:PORT``: ``docker.io``, ``localhost:5000``, ``[::1]:5000``."""
    repository: str
    """``library/debian``."""
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """What ``text`` is short for.

        Raises :class:`InvalidName`, which says what would be right, for anything that the grammar
        does not have, and for 64 hex digits alone: those are an image's id.
        """
        if len(text) > _LONGEST_TEXT:
            raise _invalid(text, "it is too long")
        if text.startswith("docker://"):
            raise _invalid(text, "leave out docker://")
        if _ID.fullmatch(text):
            raise _invalid(text, "64 hex digits are an image's id")
        rest, at, digest = text.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise _invalid(text, "what follows @ has to be sha256:HEX or sha512:HEX")
        registry, path = _split(rest)
        repository, colon, tag = path.partition(":")
        _check(text, registry, repository)
        if colon and not _TAG.fullmatch(tag):
            raise _invalid(text, "a tag has up to 128 letters, digits and _.-, none of .- first")
        if registry == DOCKER_HUB and "/" not in repository:
            repository = _OFFICIAL + repository
        if len(repository) > _LONGEST:
            raise _invalid(text, f"a repository has at most {_LONGEST} characters")
        return cls(registry, repository, tag or (None if digest else _LATEST), digest or None)

    @property
    def name(self) -> str:
        """Registry and repository: ``docker.io/library/debian``."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The short form, as Docker shows it: ``debian:12``.

        It is complete where the short form would mean something else (``docker.io/a.b/c``).
        """
        if self.registry != DOCKER_HUB:
            return str(self)
        owner, slash, name = self.repository.partition("/")
        official = f"{owner}{slash}" == _OFFICIAL and "/" not in name
        short = (name if official else self.repository) + self._suffix()
        try:
            return short if Reference.parse(short) == self else str(self)
        except InvalidName:
            return str(self)

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag


def normalize(name: str) -> str:
    """What a store calls an image: the short form, with its tag.

    ``debian`` and ``docker.io/library/debian`` are ``debian:latest``; ``debian:12`` stays.

    Raises :class:`InvalidName` for what the grammar does not allow, and for a digest, which names
    one image for ever and so is nothing to give to another.
    """
    reference = Reference.parse(name)
    if reference.digest is not None:
        raise _invalid(name, "a name with a digest can't be given", "NAME[:TAG], as in debian:12")
    return reference.familiar


def _split(text: str) -> tuple[str, str]:
    """Registry, and repository with tag.

    The part before the first slash is a registry if it could be no one's name on Docker Hub: it
    has a dot, a colon or upper case, or is ``localhost``.
    """
    first, slash, rest = text.partition("/")
    if not slash or not (set(first) & {".", ":"} or first == "localhost" or first != first.lower()):
        return DOCKER_HUB, text
    return (DOCKER_HUB if first == _OLD_DOCKER_HUB else first), rest


def _check(text: str, registry: str, repository: str) -> None:
    if not _HOST.fullmatch(registry) or len(registry) > _LONGEST:
        raise _invalid(text, f"{printable(registry)!r} is no host of a registry")
    if _REPOSITORY.fullmatch(repository):
        return
    if repository != repository.lower() and _REPOSITORY.fullmatch(repository.lower()):
        raise _invalid(text, f"it has to be lower case: {printable(repository.lower())!r}")
    raise _invalid(text, "a repository has lower-case letters and digits, between them ._-/")


def _invalid(text: str, why: str, shape: str = _SHAPE) -> InvalidName:
    return InvalidName(f"not an image name: {printable(text[:1000])!r}: {why} ({shape})")
