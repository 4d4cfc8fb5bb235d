"""Reading a stream that may be compressed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

from lamina.archive.compression.formats import (
    BLOCK_SIZE,
    HEAD_SIZE,
    Compression,
    Trailing,
    detect,
)
from lamina.archive.compression.source import Source, SourceLike
from lamina.types import DiffId, Digest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from lamina.archive.compression.pipeline import Pipeline

    class _Raw(io.RawIOBase, BinaryIO):
        """What io's own files are to a type checker."""
else:
    _Raw = io.RawIOBase


class Decompressed(_Raw):
    """The plain bytes of a stream, a raw binary file that can't seek (see :func:`open_stream`).

    ``compression`` says what the stream was. The digests and sizes hold when everything has
    been read: before that, asking for a digest raises :class:`ValueError`.
    """

    def __init__(
        self,
        source: SourceLike,
        *,
        digest: str | None,
        diff_id: bool,
        trailing: Trailing,
        compression: Compression | None = None,
    ) -> None:
        super().__init__()
        self._source = Source(source)
        self._pipeline: Pipeline | None = None
        self._rest = memoryview(b"")
        self._at_end = False
        self.size = 0
        """Plain bytes read so far."""
        try:
            self.compression = compression or detect(self._source.peek(HEAD_SIZE))
            if self.compression != "none" or digest or diff_id:
                from lamina.archive.compression.pipeline import Pipeline

                hashed = "sha256" if diff_id else None
                self._pipeline = Pipeline(self._source, self.compression, digest, hashed, trailing)
        except BaseException:
            self._source.close()
            raise

    @property
    def compressed_size(self) -> int:
        """Bytes taken from the source so far (ahead of ``size`` by what the queues hold)."""
        return self.size if self._pipeline is None else self._pipeline.bytes_read

    @property
    def digest(self) -> Digest:
        """Digest of the bytes of the source, all of them."""
        digest, _ = self._digests()
        if digest is None:
            raise ValueError("the stream was opened without digest")
        return digest

    @property
    def diff_id(self) -> DiffId:
        """Digest of the plain bytes."""
        _, diff_id = self._digests()
        if diff_id is None:
            raise ValueError("the stream was opened without diff_id")
        return DiffId(diff_id)

    def _digests(self) -> tuple[Digest | None, Digest | None]:
        if not self._at_end:
            raise ValueError("the stream has not been read to its end")
        return (None, None) if self._pipeline is None else self._pipeline.digests()

    def readable(self) -> bool:
        """True."""
        return True

    @property
    def file(self) -> io.FileIO | None:
        """The source itself, where the plain bytes are simply those of a regular file.

        For readers that do better with an open file (copy_file_range, holes). It is read instead
        of this stream, from the position at which it stands, and is closed with it.
        """
        if self._pipeline is not None or not self._source.regular:
            return None
        return io.FileIO(self._source.fileno(), "rb", closefd=False)

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes, perhaps fewer; nothing at the end only. All, for -1 or None."""
        if size is None or size < 0:
            return self.readall()
        self._check_open()
        if not self._rest and size and not self._at_end:
            self._rest = memoryview(self._next(size))
        data, self._rest = self._rest[:size], self._rest[size:]
        self.size += len(data)
        return data.obj if not self._rest and len(data) == len(data.obj) else bytes(data)  # type: ignore[return-value, arg-type]

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` with some bytes and say how many; 0 at the end only."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        if not self._rest and view and not self._at_end:
            self._rest = memoryview(self._next(len(view)))
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self.size += count
        return count

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("read of a closed stream")

    def _next(self, size: int) -> bytes:
        if self._pipeline is None:
            block = self._source.read(min(size, BLOCK_SIZE))
        else:
            block = self._pipeline.get()
        self._at_end = not block
        return block

    def close(self) -> None:
        """End the threads; close the source if it was given as a path. May be called twice."""
        if not self.closed:
            super().close()
            if self._pipeline is not None:
                self._pipeline.close()
            self._source.close()


def open_stream(
    source: SourceLike,
    *,
    digest: str | None = "sha256",
    diff_id: bool = True,
    trailing: Trailing = "ignore",
    compression: Compression | None = None,
) -> Decompressed:
    """The plain bytes of ``source``, whatever it is compressed with; a context manager.

    ``source`` is a path, a descriptor or an object with ``read``. gzip, zstd, bzip2 and xz are
    told by their magic, all else is passed on as it is. Reading, decompression and hashing run
    in threads, some MiB ahead of the caller at most. ``digest`` names the hash to take of the
    bytes of the source (OCI: a blob's digest), ``diff_id`` says whether to take the sha256 of
    the plain bytes (OCI: a layer's DiffID); both are read from the result at the end. A plain
    source with neither is read without threads; a regular file can be had as ``file`` then.

    ``trailing`` is about what follows the end of a compressed stream: ``"ignore"`` does as the
    format's own tool, ``"refuse"``, for what has no reason to go on (a layer's blob), has nothing.
    ``compression`` is what the source is known to be; by default its first bytes tell.

    Reading raises :class:`lamina.errors.InvalidArchive` for a damaged or truncated stream, and,
    when all plain bytes were read, for one that goes on.
    """
    return Decompressed(
        source, digest=digest, diff_id=diff_id, trailing=trailing, compression=compression
    )
