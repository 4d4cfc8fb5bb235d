"""Putting an archive together again from its records and the files of its layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from lamina.archive.split.records import SEGMENT
from lamina.errors import InvalidArchive, LayerBroken, printable

if TYPE_CHECKING:
    from lamina.archive.split.reading import Record

_READ_SIZE = 1 << 20
_PIECE_SIZE = 256 << 10


def assemble(
    records: BinaryIO, open_file: Callable[[bytes], BinaryIO], *, layer: str
) -> Iterator[bytes]:
    """The bytes of the archive that ``records`` were taken from, in pieces of some size.

    ``open_file`` opens a file of the layer by its name in the archive, for reading and seeking.
    ``layer`` is what an error calls it. Memory is bounded by the largest record, 1 MiB in ours.

    Raises :class:`LayerBroken` when the records are damaged, a file is missing, or a file is
    not what it was. Each file is checked when it has been read: what came before the error
    is not the archive's.
    """
    parts: list[bytes] = []
    size = 0
    for data in _contents(records, open_file, layer):
        parts.append(data)
        size += len(data)
        if size >= _PIECE_SIZE:
            yield b"".join(parts)
            parts.clear()
            size = 0
    if parts:
        yield b"".join(parts)


def _contents(
    records: BinaryIO, open_file: Callable[[bytes], BinaryIO], layer: str
) -> Iterator[bytes]:
    from lamina.archive.split.reading import read_records

    try:
        for record in read_records(records):
            if record.type == SEGMENT:
                yield record.payload or b""
            elif record.size:
                yield from _file(record, open_file, layer)
    except InvalidArchive as error:
        raise LayerBroken(layer, error.why) from error


def _file(record: Record, open_file: Callable[[bytes], BinaryIO], layer: str) -> Iterator[bytes]:
    from fastcrc.crc64 import go_iso

    name = record.path()
    try:
        file = open_file(name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise LayerBroken(layer, f"file '{printable(name)}' is missing") from error
    crc = 0
    with file:
        pieces = _segments(file, record) if record.sparse else _whole(file, record.size)
        for data in pieces:
            crc = go_iso(data, crc)
            yield data
    if crc.to_bytes(8, "big") != record.payload:
        raise LayerBroken(layer, f"file '{printable(name)}' is not what it was (checksum)")


def _whole(file: BinaryIO, size: int) -> Iterator[bytes]:
    """All of the file, but not much more than there should be: a changed file may be any size."""
    left = size + 1
    while left > 0 and (data := file.read(min(left, _READ_SIZE))):
        left -= len(data)
        yield data


def _segments(file: BinaryIO, record: Record) -> Iterator[bytes]:
    for offset, length in record.sparse:
        file.seek(offset)
        while length and (data := file.read(min(length, _READ_SIZE))):
            length -= len(data)
            yield data
