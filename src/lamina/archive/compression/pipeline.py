"""The threads behind a stream: one reads and decompresses, one hashes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.archive.compression.channel import Channel
from lamina.archive.compression.formats import Compression, Trailing, decode
from lamina.archive.compression.source import Source
from lamina.types import Digest

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

DEPTH = 8
"""Blocks between two threads: 2 MiB."""


class Pipeline:
    """Plain blocks of a source, decompressed and hashed while the caller handles earlier ones.

    ``digest`` names the hash of the bytes read (None: not wanted), ``diff_id`` that of the
    bytes that come out. Memory is bounded by the queues, and the threads run no further ahead
    of the caller than those are deep: that is what holds a decompression bomb.
    """

    def __init__(
        self,
        source: Source,
        compression: Compression,
        digest: str | None,
        diff_id: str | None,
        trailing: Trailing,
    ) -> None:
        import hashlib
        import threading

        self.bytes_read = 0
        self._source = source
        self._compression = compression
        self._trailing = trailing
        self._digest: Hash | None = hashlib.new(digest) if digest else None
        self._diff_id: Hash | None = hashlib.new(diff_id) if diff_id else None
        if compression is Compression.NONE and digest == diff_id:
            self._diff_id = self._digest
        self._error: BaseException | None = None
        self._blocks: Channel[bytes] = Channel(DEPTH)
        self._to_hash: Channel[tuple[Hash, bytes]] = Channel(2 * DEPTH)
        self._threads = [
            threading.Thread(target=target, name=f"lamina-{what}", daemon=True)
            for what, target in (("decompress", self._decompress), ("hash", self._hash))
        ]
        for thread in self._threads:
            thread.start()

    def get(self) -> bytes:
        """The next block; nothing at the end.

        Raises :class:`InvalidArchive` where the stream is damaged, and whatever reading the
        source raised: after all blocks before it.
        """
        block = self._blocks.get()
        if block is not None:
            return block
        if self._error is not None:
            raise self._error
        return b""

    def digests(self) -> tuple[Digest | None, Digest | None]:
        """Digest of the bytes read and of those that came out. To be asked at the end only."""
        self._join()
        return _text(self._digest), _text(self._diff_id)

    def close(self) -> None:
        """End the threads. Only the read of an object without descriptor is waited for."""
        self._blocks.close()
        self._source.stop()
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.bytes_read += len(data)
        if self._digest is not None and self._digest is not self._diff_id and data:
            self._to_hash.put((self._digest, data))
        return data

    def _decompress(self) -> None:
        try:
            for block in decode(self._compression, self._read, self._trailing):
                if self._diff_id is not None:
                    self._to_hash.put((self._diff_id, block))
                if not self._blocks.put(block):
                    return
            while self._read(1 << 20):  # what follows the last member belongs to the digest
                pass
        except BaseException as error:
            self._error = error
        finally:
            self._to_hash.end()
            self._blocks.end()

    def _hash(self) -> None:
        try:
            while (item := self._to_hash.get()) is not None:
                item[0].update(item[1])
        finally:
            self._to_hash.close()


def _text(done: Hash | None) -> Digest | None:
    return None if done is None else Digest(f"{done.name}:{done.hexdigest()}")
