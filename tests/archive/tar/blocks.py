"""Tar archives put together by hand, right or wrong."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from lamina.archive.tar import Entry, Limits, TarReader
from lamina.errors import InvalidArchive

USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)
END = bytes(1024)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def header(
    name: bytes,
    flag: bytes = b"0",
    *,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    gid: bytes = b"0000000\0",
    size: bytes | int = 0,
    mtime: bytes = b"00000000000\0",
    link: bytes = b"",
    magic: bytes = USTAR,
    uname: bytes = b"",
    gname: bytes = b"",
    major: bytes = b"0000000\0",
    minor: bytes = b"0000000\0",
    tail: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header block; ``tail`` is what comes from byte 345 (the prefix) on."""
    if isinstance(size, int):
        size = b"%011o\0" % size
    parts = [
        name.ljust(100, b"\0"), mode, uid, gid, size, mtime, b" " * 8, flag,
        link.ljust(100, b"\0"), magic, uname.ljust(32, b"\0"), gname.ljust(32, b"\0"),
        major, minor, tail,
    ]  # fmt: skip
    block = bytearray(b"".join(parts).ljust(512, b"\0"))
    assert len(block) == 512
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum
    return bytes(block)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest


def extended(body: bytes, flag: bytes = b"x", name: bytes = b"PaxHeaders/x") -> bytes:
    return header(name, flag, size=len(body)) + padded(body)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    return extended(b"".join(record(key, value) for key, value in records), flag)


def file(name: bytes, data: bytes = b"", **fields: bytes) -> bytes:
    return header(name, size=len(data), **fields) + padded(data)


class Trickle(io.RawIOBase):
    """A stream that gives a few bytes at a time, and can't seek."""

    def __init__(self, data: bytes, *pieces: int) -> None:
        self._data = memoryview(data)
        self._pieces = pieces or (1,)
        self._turn = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        count = min(self._pieces[self._turn % len(self._pieces)], len(buffer), len(self._data))
        self._turn += 1
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


class OnlyRead:
    """A stream that has but read()."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._stream.read(size)


@dataclass
class Recorder:
    """An observer that keeps what it sees."""

    stream: bytearray = field(default_factory=bytearray)
    calls: list[tuple[str, bytes]] = field(default_factory=list)

    def raw(self, data: memoryview) -> None:
        self.stream += data
        self.calls.append(("raw", bytes(data)))

    def begin(self, entry: Entry) -> None:
        self.calls.append(("begin", entry.name))

    def payload(self, data: memoryview) -> None:
        self.stream += data
        self.calls.append(("payload", bytes(data)))

    def end(self) -> None:
        self.calls.append(("end", b""))


def contents(archive: bytes, limits: Limits | None = None) -> Iterator[tuple[Entry, bytes]]:
    """Every entry with its payload."""
    reader = TarReader(io.BytesIO(archive), limits=limits or Limits())
    for entry in reader:
        yield entry, b"".join(bytes(piece) for piece in reader.chunks())


def entries(archive: bytes, limits: Limits | None = None) -> list[Entry]:
    return [entry for entry, _ in contents(archive, limits)]


def only(archive: bytes) -> Entry:
    (entry,) = entries(archive)
    return entry


def refused(archive: bytes, why: str, limits: Limits | None = None) -> InvalidArchive:
    """The error that reading the archive ends with."""
    with pytest.raises(InvalidArchive, match=why) as caught:
        entries(archive, limits)
    return caught.value
