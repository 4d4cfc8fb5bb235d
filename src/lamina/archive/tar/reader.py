"""Reading a tar stream, one entry after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from lamina.archive.tar.entry import Entry, Limits


class Readable(Protocol):
    """Anything to read bytes from. ``readinto``, where there, saves a copy."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""


class Observer(Protocol):
    """Sees the whole stream pass, in order: what raw and payload get is every byte of it.

    Each entry: raw (its headers, once or more), begin, payload (not at all, or once or
    more), end; padding is raw again. A memoryview is valid during the call only.
    """

    def raw(self, data: memoryview) -> None:
        """Bytes that are no file's payload: headers, sparse maps, padding, the end, what follows."""

    def begin(self, entry: Entry) -> None:
        """The headers of ``entry`` are read; its payload, if any, comes next."""

    def payload(self, data: memoryview) -> None:
        """Payload as stored."""

    def end(self) -> None:
        """The payload of the entry is complete."""


class TarReader:
    """Iterate over the entries of a tar stream; content by chunks() or copy_to()."""

    def __init__(
        self, stream: Readable, *, observer: Observer | None = None, limits: Limits = Limits()
    ) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Entry]:
        raise NotImplementedError

    def chunks(self) -> Iterator[memoryview]:
        """The current entry's payload as stored, in pieces valid until the next step."""
        raise NotImplementedError

    def copy_to(self, fd: int) -> int:
        """Write the current entry's content to ``fd``, holes as holes; how many bytes of data."""
        raise NotImplementedError
