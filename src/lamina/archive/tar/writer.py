"""Writing tar: ustar headers where they do, a pax header in front where they don't.

The same entry always gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Protocol
from zlib import adler32

from lamina.archive.tar import pax, sparse
from lamina.archive.tar.entry import Entry, Type
from lamina.archive.tar.header import BLOCK, MAX_ID, MAX_SIZE
from lamina.archive.tar.source import BUFFER

END = bytes(2 * BLOCK)
"""What ends an archive."""

# name; numbers, checksum and type flag; link name, magic and version, user, group; device's
# numbers; prefix
_HEADER = Struct("100s57s100s8s32s32s16s155s12x")
_MAGIC = b"ustar\x0000"
_SMALL = 0o7777777  # what seven octal digits hold
_LARGE = 0o77777777777  # eleven
_PAX_DIRECTORY = b"PaxHeaders.0/"
_NAMES = ("path", "linkpath", "uname", "gname", "GNU.sparse.name")
_SPARSE_DIRECTORY = b"GNUSparseFile.0/"


class Writable(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write all of ``data``."""


def encode(entry: Entry) -> bytes:
    """The header blocks of ``entry``; its payload comes next, then ``padding``.

    Payload is, for a file alone, ``size`` bytes, or what ``sparse`` lists, one piece after the
    other; the map of a sparse file (GNU's pax format 1.0) is in what this returns. Names are
    written as they are, in ustar and pax headers alike. Raises ValueError for an entry that
    can't be in a tar archive.
    """
    name, linkname, uname, gname = entry.name, entry.linkname, entry.uname, entry.gname
    size = entry.size if entry.type is Type.FILE else 0
    uid, gid = entry.uid, entry.gid
    if not name or b"\0" in name or b"\0" in linkname or b"\0" in uname or b"\0" in gname:
        raise ValueError(f"not a name for an archive in {entry!r:.1000}")
    if not (0 <= size <= MAX_SIZE and 0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
        raise ValueError(f"size or id out of range: {name!r}")
    if not (0 <= entry.devmajor <= _SMALL and 0 <= entry.devminor <= _SMALL):
        raise ValueError(f"device number out of range: {entry.devmajor}, {entry.devminor}")
    if entry.type is Type.DIRECTORY and not name.endswith(b"/"):
        name += b"/"

    records = _other_records(entry) if entry.pax or entry.xattrs else {}
    sparse_map = b""
    if entry.sparse is not None and entry.type is Type.FILE:
        sparse_map = sparse.encode_1_0(entry.sparse, size)
        records["GNU.sparse.major"] = b"1"
        records["GNU.sparse.minor"] = b"0"
        records["GNU.sparse.name"] = name
        records["GNU.sparse.realsize"] = b"%d" % size
        size = len(sparse_map) + sum(length for _, length in entry.sparse)
        name = _below(_SPARSE_DIRECTORY, name)
    prefix = b""
    if len(name) > 100:
        prefix, name = _split(name, records)
    if len(linkname) > 100:
        records["linkpath"] = linkname
        linkname = linkname[:100]
    if len(uname) > 31:  # a NUL comes behind it
        records["uname"], uname = uname, uname[:31]
    if len(gname) > 31:
        records["gname"], gname = gname, gname[:31]
    if size > _LARGE:
        records["size"], size = b"%d" % size, 0
    if uid > _SMALL:
        records["uid"], uid = b"%d" % uid, 0
    if gid > _SMALL:
        records["gid"], gid = b"%d" % gid, 0
    seconds, fraction = divmod(entry.mtime_ns, 1_000_000_000)
    if fraction or not 0 <= seconds <= _LARGE:
        records["mtime"] = _time(entry.mtime_ns)
        seconds = seconds if 0 <= seconds <= _LARGE else 0
    numbers = (entry.mode & 0o7777, uid, gid, size, seconds)
    device = entry.devmajor, entry.devminor
    header = _block(name, numbers, entry.type.value, linkname, uname, gname, device, prefix)
    if records:
        if any(key in records and not _is_utf8(records[key]) for key in _NAMES):
            records["hdrcharset"] = b"BINARY"
        header = _extended_header(entry.name, records) + header
    return header + sparse_map


def padding(size: int) -> bytes:
    """The zeros that follow a payload of ``size`` bytes."""
    return bytes(-size % BLOCK)


def _other_records(entry: Entry) -> dict[str, bytes]:
    """Records of what is in no header field."""
    records = dict(entry.pax)
    if not pax.is_free(records):
        raise ValueError(f"a pax record that a field stands for: {sorted(records)}")
    for name, value in entry.xattrs.items():
        if not name or "\0" in name:
            raise ValueError(f"not the name of an extended attribute: {name!r}")
        records[pax.encode_xattr_name(name)] = value
    return records


def _below(directory: bytes, name: bytes) -> bytes:
    """A stand-in's name: ``name``'s last part in ``directory``, cut to fit."""
    return (directory + name.rstrip(b"/").rpartition(b"/")[2])[:100]


def _split(name: bytes, records: dict[str, bytes]) -> tuple[bytes, bytes]:
    """Prefix and name field for a name of more than 100 bytes; by a record if it fits in neither.

    The slash between the two is in neither field.
    """
    if len(name) <= 256:
        slash = name.find(b"/", max(1, len(name) - 101), 156)
        if 0 < slash < len(name) - 1:
            return name[:slash], name[slash + 1 :]
    records["path"] = name
    return b"", name[:100]


def _time(mtime_ns: int) -> bytes:
    sign = b"-" if mtime_ns < 0 else b""
    seconds, fraction = divmod(abs(mtime_ns), 1_000_000_000)
    return (b"%b%d.%09d" % (sign, seconds, fraction)).rstrip(b"0").rstrip(b".")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _block(
    name: bytes,
    numbers: tuple[int, int, int, int, int],
    flag: bytes,
    linkname: bytes = b"",
    uname: bytes = b"",
    gname: bytes = b"",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
) -> bytes:
    """A ustar header of fields that fit; ``numbers`` are mode, user, group, size and time."""
    block = _HEADER.pack(
        name,
        b"%07o\0%07o\0%07o\0%011o\0%011o\0        %b" % (*numbers, flag),
        linkname,
        _MAGIC,
        uname,
        gname,
        b"%07o\0%07o\0" % device,
        prefix,
    )
    # As in reading: Adler-32's lower half is one more than the sum, if that is below 65521.
    total = (adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)
    return b"%b%06o\0 %b" % (block[:148], total, block[156:])


def _extended_header(name: bytes, records: dict[str, bytes]) -> bytes:
    body = pax.encode(records)
    header = _block(_below(_PAX_DIRECTORY, name), (0o644, 0, 0, len(body), 0), b"x")
    return b"".join((header, body, padding(len(body))))


class TarWriter:
    """Entries with their content, one after the other, into ``sink``."""

    def __init__(self, sink: Writable) -> None:
        self._write = sink.write

    def add(self, entry: Entry, content: int | Iterable[bytes | memoryview] = ()) -> None:
        """Write the entry and its content.

        Content is an open file's number (read by position, from 0 on, where ``sparse`` says
        there is data), or the payload in pieces. Raises ValueError, with the archive spoiled,
        when it is not as long as the entry says.
        """
        self._write(encode(entry))
        segments: Iterable[tuple[int, int]] = ()
        if entry.type is Type.FILE:
            segments = ((0, entry.size),) if entry.sparse is None else entry.sparse
        expected = sum(length for _, length in segments)
        written = 0
        for piece in _read_segments(content, segments) if isinstance(content, int) else content:
            written += len(piece)
            if written > expected:
                break
            self._write(piece)
        if written != expected:
            raise ValueError(f"{entry.name!r} has not the {expected} bytes of content it says")
        self._write(padding(expected))

    def close(self) -> None:
        """Write the end of the archive; the sink stays open."""
        self._write(END)


def _read_segments(fd: int, segments: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    for offset, length in segments:
        end = offset + length
        while offset < end and (data := os.pread(fd, min(BUFFER, end - offset), offset)):
            yield data
            offset += len(data)
