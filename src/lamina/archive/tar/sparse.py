"""Maps of sparse files: GNU's old format and its pax formats 0.0, 0.1 and 1.0.

See GNU tar's manual, "Storing Sparse Files". A map lists the file's pieces of data; their
bytes follow one another in the payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NoReturn

from lamina.archive.tar.entry import Entry, Limits
from lamina.archive.tar.header import BLOCK, MAX_SIZE, number
from lamina.archive.tar.pax import SPARSE, Extension, decimal, text
from lamina.archive.tar.source import Source
from lamina.errors import InvalidArchive

Segments = tuple[tuple[int, int], ...]


def read_old_gnu(header: bytes, source: Source, limits: Limits) -> tuple[int, list[int]]:
    """Real size, and offsets and lengths by turns, of type S.

    Four pieces are in the header; as long as a flag says so, a block with 21 more follows.
    """
    real_size = number(bytes(header[483:495]))
    pairs = list(_table(header, 386, 4))
    more = header[482]
    while more and len(pairs) <= 2 * limits.sparse_segments:
        block = source.take(BLOCK)
        pairs += _table(block, 0, 21)
        more = block[504]
    if len(pairs) > 2 * limits.sparse_segments:
        _too_many()
    return real_size, pairs


def _table(block: bytes, start: int, count: int) -> Iterator[int]:
    """Numbers from a table of (offset, length), each of 12 bytes, that an empty field may end."""
    for position in range(start, start + 24 * count, 24):
        if not block[position] or not block[position + 12]:
            return
        yield number(bytes(block[position : position + 12]))
        yield number(bytes(block[position + 12 : position + 24]))


def read_pax(
    extension: Extension, entry: Entry, source: Source, limits: Limits
) -> tuple[int, list[int]] | None:
    """Real size, and offsets and lengths by turns, as pax records have it; None for a plain file.

    ``extension`` has the records in force. Format 1.0 has the map in front of the data: it is
    taken from ``source`` and from the entry's ``stored_size``. Sets the entry's real name.
    """
    values = extension.values
    if name := values.get(SPARSE + "name"):
        entry.name = text(name)
    if SPARSE + "major" in values or SPARSE + "minor" in values:
        version = values.get(SPARSE + "major"), values.get(SPARSE + "minor")
        if version == (b"1", b"0"):
            real_size = _required(values, "realsize")
            return real_size, _read_1_0(entry, source, limits)
        if version not in ((b"0", b"0"), (b"0", b"1")):
            raise InvalidArchive("a sparse format unknown here")
    if SPARSE + "map" in values:
        numbers = values[SPARSE + "map"].split(b",")
        if len(numbers) > 2 * limits.sparse_segments:
            _too_many()
        pairs = [decimal(value) for value in numbers] if numbers != [b""] else []
    elif extension.map_0_0 or SPARSE + "size" in values:
        pairs = extension.map_0_0
    else:
        return None
    if SPARSE + "numblocks" in values and 2 * _required(values, "numblocks") != len(pairs):
        raise InvalidArchive("sparse map is not as long as it says")
    return _required(values, "size"), pairs


def _required(values: dict[str, bytes], name: str) -> int:
    value = values.get(SPARSE + name)
    if value is None:
        raise InvalidArchive(f"sparse file without {SPARSE}{name}")
    return decimal(value)


def _read_1_0(entry: Entry, source: Source, limits: Limits) -> list[int]:
    """The map of format 1.0: decimal numbers, one a line, how many pieces first."""
    numbers = _lines_of_numbers(entry, source)
    count = next(numbers)
    if count > limits.sparse_segments:
        _too_many()
    return list(islice(numbers, 2 * count))


def _lines_of_numbers(entry: Entry, source: Source) -> Iterator[int]:
    """Endless: takes one block after the other from the front of the payload."""
    rest = b""
    while True:
        if entry.stored_size < BLOCK:
            raise InvalidArchive("sparse map goes past the payload")
        entry.stored_size -= BLOCK
        *lines, rest = (rest + source.take(BLOCK)).split(b"\n")
        yield from map(decimal, lines)
        if len(rest) > BLOCK:
            raise InvalidArchive("malformed sparse map")


def _too_many() -> NoReturn:
    raise InvalidArchive("too many pieces in a sparse file")


def check(pairs: list[int], real_size: int, stored_size: int) -> Segments:
    """The map as (offset, length) pairs, empty ones left out.

    Raises InvalidArchive unless the pieces ascend without overlap, end within the real size
    and add up to what the archive stores.
    """
    if not 0 <= real_size <= MAX_SIZE:
        raise InvalidArchive(f"size out of range: {real_size}")
    if len(pairs) % 2:
        raise InvalidArchive("malformed sparse map")
    segments = []
    end = total = 0
    numbers = iter(pairs)
    for offset, length in zip(numbers, numbers, strict=True):
        if length < 0 or offset < end or offset + length > real_size:
            raise InvalidArchive("sparse map overlaps, descends or goes past the file's size")
        end = offset + length
        total += length
        if length:
            segments.append((offset, length))
    if total != stored_size:
        raise InvalidArchive(f"sparse map of {total} bytes over a payload of {stored_size}")
    return tuple(segments)


def encode_1_0(segments: Iterable[tuple[int, int]], size: int) -> bytes:
    """The map in format 1.0, in whole blocks.

    GNU tar stores a region in whole blocks, so all but the last must be: ValueError else,
    and for pieces that overlap, descend or go past ``size``.
    """
    lines = []
    end = 0
    for offset, length in segments:
        if offset < end or length <= 0 or offset + length > size:
            raise ValueError("sparse map overlaps, descends or goes past the file's size")
        if length % BLOCK and offset + length != size:
            raise ValueError("sparse map with a piece that is not of whole blocks")
        end = offset + length
        lines += [offset, length]
    if end < size:
        # GNU tar sets the size of a file that ends in a hole by an empty piece there.
        lines += [size, 0]
    text = b"".join(b"%d\n" % number for number in (len(lines) // 2, *lines))
    return text + bytes(-len(text) % BLOCK)
