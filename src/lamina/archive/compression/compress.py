"""Writing a compressed stream. The same input and level give the same bytes.

That is: however the input is cut into chunks, and however many threads work on it. Not: in another
version of a library, or on another kind of processor, for which isal and zlib-ng may find other
matches; a layer's identity, the DiffID, is that of its plain bytes.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lamina.archive.compression.formats import Compression

if TYPE_CHECKING:
    from concurrent.futures import Future

GZIP_LEVELS = range(1, 10)
ZSTD_LEVELS = range(1, 20)
DEFAULT_GZIP_LEVEL = 2
DEFAULT_ZSTD_LEVEL = 3

_LEVELS = {
    Compression.GZIP: (GZIP_LEVELS, DEFAULT_GZIP_LEVEL),
    Compression.ZSTD: (ZSTD_LEVELS, DEFAULT_ZSTD_LEVEL),
}

# zlib-ng's own for each of ours. Its 3, 4 and 5 take an eighth less time than the next one, for a
# hundredth more bytes at most: a Debian root comes to 105.8, 104.5, 103.3 and, by 6, 103.1 MB.
_ZLIB_NG_LEVELS = {4: 3, 5: 4, 6: 5, 7: 7, 8: 8, 9: 9}

_BLOCK = 1 << 20
_WINDOW = 32 << 10
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, system unknown

Chunk = bytes | bytearray | memoryview


def compress(
    chunks: Iterable[Chunk],
    compression: Compression,
    *,
    level: int | None = None,
    threads: int | None = None,
) -> Iterator[bytes]:
    """``chunks``, compressed, in pieces of any size.

    gzip has levels 1 to 9: to 3 by isal, which is some ten times as fast as gzip(1) for a tenth
    more bytes (default 2), from 4 on by zlib-ng, which is three times as fast as gzip(1) for a
    fortieth more. zstd has levels 1 to 19 (default 3). bzip2 and
    xz are only read. ``threads`` is the number of threads at work, by default as many as there
    are processors.

    Raises :class:`ValueError` for a level or compression that can't be.
    """
    threads = threads or len(os.sched_getaffinity(0))
    level = level_of(compression, level)
    if compression is Compression.NONE:
        return (bytes(chunk) for chunk in chunks)
    return (_gzip if compression is Compression.GZIP else _zstd)(chunks, level, threads)


def level_of(compression: str, level: int | None = None) -> int:
    """The level that ``level`` comes to: the default for None, 0 where nothing is compressed.

    Raises :class:`ValueError` for a level or compression that can't be.
    """
    if compression == Compression.NONE:
        return 0
    if compression not in _LEVELS:
        raise ValueError(f"{compression} can be read but not written")
    levels, default = _LEVELS[Compression(compression)]
    level = default if level is None else level
    if level not in levels:
        raise ValueError(f"compression level {level} is not within {levels[0]} to {levels[-1]}")
    return level


def _blocks(chunks: Iterable[Chunk]) -> Iterator[bytes]:
    """The same bytes in blocks of one size (the last is shorter)."""
    block = bytearray()
    for chunk in chunks:
        block += chunk
        while len(block) >= _BLOCK:
            yield bytes(memoryview(block)[:_BLOCK])
            del block[:_BLOCK]
    if block:
        yield bytes(block)


def _gzip(chunks: Iterable[Chunk], level: int, threads: int) -> Iterator[bytes]:
    """One gzip member whose blocks are compressed side by side, as pigz(1) does it.

    Each block is a raw deflate stream that begins with the window of the block before and ends
    on a byte boundary (sync flush); the last piece is an empty final block.
    """
    import zlib
    from concurrent.futures import ThreadPoolExecutor

    from isal import isal_zlib

    new: Callable[..., Any] = isal_zlib.compressobj
    if level > 3:
        from zlib_ng import zlib_ng

        new = zlib_ng.compressobj
        level = _ZLIB_NG_LEVELS[level]
    flush: int = isal_zlib.Z_SYNC_FLUSH

    def deflate(block: bytes, window: bytes) -> bytes:
        compressor = new(level, zlib.DEFLATED, -15, 8, 0, window)
        data: bytes = compressor.compress(block) + compressor.flush(flush)
        return data

    checksum, size, window = 0, 0, b""
    pending: deque[Future[bytes]] = deque()
    yield _GZIP_HEADER
    with ThreadPoolExecutor(threads, "lamina-gzip") as pool:
        for block in _blocks(chunks):
            pending.append(pool.submit(deflate, block, window))
            checksum = isal_zlib.crc32(block, checksum)
            size += len(block)
            window = block[-_WINDOW:]
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    trailer = checksum.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
    yield b"\x03\x00" + trailer


def _zstd(chunks: Iterable[Chunk], level: int, threads: int) -> Iterator[bytes]:
    """One frame with a checksum. Its bytes are the same for any number of workers but none."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {
        parameter.compression_level: level,
        parameter.checksum_flag: 1,
        parameter.nb_workers: threads,
    }
    compressor = zstd.ZstdCompressor(options=options)
    for block in _blocks(chunks):
        if data := compressor.compress(block):
            yield data
    yield compressor.flush()
