"""Reading records, which come from outside and may be anything."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from typing import BinaryIO, NoReturn

import msgspec

from lamina.archive.compression import open_stream
from lamina.archive.split.records import FILE, SEGMENT
from lamina.errors import InvalidArchive

MAX_LINE = 64 << 20
"""Bytes of one record. Old versions of tar-split put all padding at the end into one."""


class Record(msgspec.Struct):
    """One record, with the fields that its JSON has (see :mod:`lamina.archive.split.records`)."""

    type: int
    name: str = ""
    name_raw: bytes | None = None
    size: int = 0
    payload: bytes | None = None
    sparse: tuple[tuple[int, int], ...] = ()

    def path(self) -> bytes:
        """The name as the archive has it."""
        return self.name_raw or self.name.encode()


def read_records(source: BinaryIO) -> Iterator[Record]:
    """The records of ``source``, gzip or plain.

    Raises :class:`InvalidArchive` for what are no such records.
    """
    decode = msgspec.json.Decoder(Record).decode
    with (
        open_stream(source, digest=None, diff_id=False) as stream,
        BufferedReader(stream, 256 << 10) as lines,
    ):
        number = 0
        while line := lines.readline(MAX_LINE):
            number += 1
            try:
                record = decode(line)
            except (msgspec.DecodeError, UnicodeError) as error:
                _bad(number, str(error))
            if record.type not in (FILE, SEGMENT):
                _bad(number, f"unknown type {record.type}")
            if record.size < 0 or record.sparse:
                _check(record, number)
            yield record


def _check(record: Record, number: int) -> None:
    end = total = 0
    for offset, length in record.sparse:
        if offset < end or length <= 0:
            _bad(number, "the sparse map overlaps or descends")
        end = offset + length
        total += length
    if record.size < 0 or (record.sparse and total != record.size):
        _bad(number, f"size {record.size} can't be")


def _bad(number: int, why: str) -> NoReturn:
    raise InvalidArchive(f"tar-split record {number}: {why}")
