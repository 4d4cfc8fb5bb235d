"""The records themselves: gzip, one JSON object a line.

    {"type":2,"payload":BASE64,"position":0}                               raw bytes
    {"type":1,"name":"etc/motd","size":5,"payload":BASE64,"position":1}    the bytes of a file

``position`` counts the records. The payload of a file record is its content's CRC-64 (ISO,
big-endian), null where there is no content. A name that is not UTF-8 is in ``name_raw`` in
base64. (tar-split: tar/storage/entry.go, packer.go.)

Every entry of the archive has a file record, also without content. Besides, tar-split itself
can neither record sparse files nor archives in which a name comes twice. Ours are recorded so
that tar-split's reader still gives the archive, unless it is said otherwise:

- Content that no file of the layer has afterwards (of an entry that a later one replaced, of a
  hard link, of a whiteout) is raw bytes. An entry that comes again has one file record only.
- A sparse file's content as the archive stores it, packed, is raw bytes if it is no more than
  ``PIECE_SIZE``. Beyond that the file record has a further key, ``"sparse"``: the (offset,
  length) pairs of the file that the stored bytes are, in order; size and payload are those of
  the stored bytes. tar-split does not know the key and says that the checksum failed.
"""

from __future__ import annotations

from binascii import b2a_base64
from json.encoder import encode_basestring_ascii
from typing import Any, BinaryIO

FILE = 1
SEGMENT = 2

PIECE_SIZE = 1 << 20
"""The most raw bytes that are put into one record, as tar-split does with padding."""

Segments = tuple[tuple[int, int], ...]


class RecordWriter:
    """Writes records to ``sink``; :meth:`close` completes them and leaves the sink open."""

    def __init__(self, sink: BinaryIO) -> None:
        from isal import isal_zlib

        self._sink = sink
        self._gzip: Any = isal_zlib.compressobj(1, wbits=31)
        self._lines: list[bytes] = []
        self._size = 0
        self._position = 0

    def segment(self, data: bytes | bytearray | memoryview) -> None:
        """Raw bytes, at most ``PIECE_SIZE``; none make no record."""
        if data:
            text = b2a_base64(data, newline=False)
            self._add(b'{"type":2,"payload":"%b","position":%d}\n' % (text, self._position))

    def file(
        self, name: bytes, size: int, payload: bytes | None, sparse: Segments | None = None
    ) -> None:
        """A file; ``payload`` is its CRC, None for a file without content."""
        try:
            called = b'"name":%b' % encode_basestring_ascii(name.decode()).encode()
        except UnicodeDecodeError:
            called = b'"name_raw":"%b"' % b2a_base64(name, newline=False)
        sized = b',"size":%d' % size if size else b""
        if sparse:
            pairs = ",".join(f"[{offset},{length}]" for offset, length in sparse)
            sized += b',"sparse":[%b]' % pairs.encode()
        text = b"null" if payload is None else b'"%b"' % b2a_base64(payload, newline=False)
        self._add(
            b'{"type":1,%b%b,"payload":%b,"position":%d}\n' % (called, sized, text, self._position)
        )

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        self._position += 1
        if self._size >= 256 << 10:
            self._flush()

    def _flush(self) -> None:
        self._sink.write(self._gzip.compress(b"".join(self._lines)))
        self._lines.clear()
        self._size = 0

    def close(self) -> None:
        """Write out what is left."""
        self._flush()
        self._sink.write(self._gzip.flush())
        self._sink.flush()
