"""The compression formats: their magic bytes and how each is decoded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol, TypeAlias, cast

from lamina.errors import InvalidArchive

HEAD_SIZE = 10
"""Bytes that :func:`detect` wants to see (fewer at the end of a short file)."""

CHUNK_SIZE = 256 << 10
"""Bytes of compressed data read at a time."""

HEADER_SIZE = 16 << 10
"""More than a gzip member's header has (names and comments in it are short in practice)."""

BLOCK_SIZE = 256 << 10
"""The most plain bytes that come out of one step: what bounds a decompression bomb."""

XZ_MEMORY_LIMIT = 512 << 20
"""Memory that an xz stream may ask for; ``xz -9`` asks for 65 MiB."""


class Compression(StrEnum):
    """How a stream is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    XZ = "xz"


def detect(head: bytes) -> Compression:
    """The compression of a stream that begins with ``head`` (``HEAD_SIZE`` bytes or more).

    Sources: RFC 1952 2.3.1, RFC 8878 3.1 (also skippable frames), the .xz file format 2.1.1.1,
    and for bzip2 the file header with the first block's magic, since ``BZh9`` may be a file name.
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return Compression.GZIP
    if head.startswith(b"\x28\xb5\x2f\xfd") or _is_skippable_frame(head):
        return Compression.ZSTD
    if head.startswith(b"\xfd7zXZ\x00"):
        return Compression.XZ
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return Compression.BZIP2
    return Compression.NONE


def _is_skippable_frame(head: bytes) -> bool:
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F


Trailing: TypeAlias = Literal["ignore", "refuse"]
"""What becomes of bytes after a stream's end: see :func:`decode`."""


class _Decoder(Protocol):
    """What isal, zstd, bz2 and lzma have in common: one member, frame or stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Format(NamedTuple):
    new_decoder: Callable[[], _Decoder]
    error: type[Exception]
    garbage_ignored: bool  # what the format's own tool does with bytes after the last member


def _gzip() -> _Format:
    from isal import igzip_lib

    flag = igzip_lib.DECOMP_GZIP
    error = cast("type[Exception]", igzip_lib.error)
    return _Format(lambda: igzip_lib.IgzipDecompressor(flag=flag), error, True)


def _zstd() -> _Format:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return _Format(zstd.ZstdDecompressor, zstd.ZstdError, False)


def _bzip2() -> _Format:
    import bz2

    return _Format(bz2.BZ2Decompressor, OSError, True)


def _xz() -> _Format:
    import lzma

    return _Format(
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_LIMIT),
        lzma.LZMAError,
        False,
    )


_FORMATS: dict[Compression, Callable[[], _Format]] = {
    Compression.GZIP: _gzip,
    Compression.ZSTD: _zstd,
    Compression.BZIP2: _bzip2,
    Compression.XZ: _xz,
}


def decode(
    compression: Compression, read: Callable[[int], bytes], trailing: Trailing = "ignore"
) -> Iterator[bytes]:
    """The plain bytes, in blocks of at most ``BLOCK_SIZE``.

    ``read(n)`` returns n bytes, fewer only at the end of the source. A stream is one or more
    members (frames). With ``trailing="ignore"``, zero bytes after the last one are padding, and any
    other bytes there are ignored where gzip(1) and bzip2(1) ignore them, and an error where zstd(1)
    and xz(1) fail. With ``"refuse"`` all are an error but xz's own padding (.xz file format, 2.2).

    Raises :class:`InvalidArchive` for a damaged or truncated stream.
    """
    if compression is Compression.NONE:
        yield from iter(lambda: read(BLOCK_SIZE), b"")
        return
    form = _FORMATS[compression]()
    data = read(CHUNK_SIZE)
    while data:
        decoder = form.new_decoder()
        yield from _member(compression, form, decoder, data, read)
        if trailing == "refuse":
            data = _next_member(compression, decoder.unused_data, read)
        else:
            data = _after_member(compression, form, decoder.unused_data, read)


def _member(
    compression: Compression,
    form: _Format,
    decoder: _Decoder,
    data: bytes,
    read: Callable[[int], bytes],
) -> Iterator[bytes]:
    while not decoder.eof:
        if decoder.needs_input and not data:
            data = read(CHUNK_SIZE)
            if not data:
                raise InvalidArchive(f"the {compression} stream is truncated")
        try:
            block = decoder.decompress(data, BLOCK_SIZE)
        except (form.error, EOFError) as error:
            raise InvalidArchive(f"the {compression} stream is damaged: {error}") from error
        data = b""
        if block:
            yield block


def _after_member(
    compression: Compression, form: _Format, data: bytes, read: Callable[[int], bytes]
) -> bytes:
    """The beginning of the next member, or nothing.

    It has ``HEADER_SIZE`` bytes at least, because isal wants a member's header in one piece.
    """
    data = data.lstrip(b"\x00")
    while len(data) < HEADER_SIZE and (more := read(CHUNK_SIZE)):
        data = data + more if data else more.lstrip(b"\x00")
    if not data or detect(data) is compression:
        return data
    if form.garbage_ignored:
        return b""
    raise InvalidArchive(f"the {compression} stream is followed by other data")


def _next_member(compression: Compression, data: bytes, read: Callable[[int], bytes]) -> bytes:
    """As :func:`_after_member`, where nothing but a member may follow."""
    padding = 0
    while True:
        while len(data) < HEADER_SIZE and (more := read(CHUNK_SIZE)):
            data += more
        if compression is not Compression.XZ or not data.startswith(b"\0"):
            break
        rest = data.lstrip(b"\0")
        padding += len(data) - len(rest)
        data = rest
    if padding % 4 or (data and detect(data) is not compression):
        raise InvalidArchive(f"the {compression} stream goes on after its end")
    return data
