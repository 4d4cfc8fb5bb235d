"""Writing tar: ustar headers where they do, a pax header in front where they don't."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from lamina.archive.tar.entry import Entry

END = bytes(1024)


class Writable(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write all of ``data``."""


def encode(entry: Entry) -> bytes:
    """The header blocks of ``entry``: the payload (``padding`` after it) comes next."""
    raise NotImplementedError


def padding(size: int) -> bytes:
    """The zeros that follow a payload of ``size`` bytes."""
    return bytes(-size % 512)


class TarWriter:
    """Entries with their content into a sink."""

    def __init__(self, sink: Writable) -> None:
        raise NotImplementedError

    def add(self, entry: Entry, content: int | Iterable[bytes | memoryview] = ()) -> None:
        """Write the entry, its content from an open file or pieces that add up to its size."""
        raise NotImplementedError

    def close(self) -> None:
        """Write the end of the archive."""
        raise NotImplementedError
