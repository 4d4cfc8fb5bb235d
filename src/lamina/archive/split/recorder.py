"""Taking an archive apart: records are written while it is unpacked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from lamina.archive.split.records import FILE, PIECE_SIZE, RecordWriter
from lamina.archive.tar import Entry, Type

_END_MARK = 1024
_COPY_SIZE = 1 << 20

_Content = tuple[int, bytes]  # size and CRC


class SplitRecorder:
    """Observes a :class:`~lamina.archive.tar.TarReader` and writes records to ``sink``.

    Unpacking reports to :meth:`superseded` each file that it removes again, so that its content
    is not lost: it waits in a file without a name in ``scratch`` (default: where temporary
    files go), and :meth:`finish` writes it into the records. For that ``sink`` must also be
    readable and able to seek. That is rare; else everything is written as it passes, and
    memory is some MiB, and a number for each entry.

    A context manager; :meth:`finish` is called once the archive is read to its end.
    """

    def __init__(self, sink: BinaryIO, *, scratch: Path | None = None) -> None:
        from fastcrc.crc64 import go_iso

        self._checksum: Callable[[bytes | memoryview, int], int] = go_iso
        self._sink = sink
        self._scratch_dir = scratch
        self._writer = RecordWriter(sink)
        self._raw = bytearray()
        self._crc = 0
        self._inline = False
        self._entry: Entry | None = None
        self._padding = 0
        self._names: set[int] = set()
        self._again: set[int] = set()
        self._sparse: list[tuple[Entry, bytes]] = []  # those recorded with a map, and their CRC
        self._lost: dict[_Content, tuple[int, int]] = {}  # where in scratch
        self._scratch: BinaryIO | None = None

    # -- what a TarReader's observer is told

    def raw(self, data: memoryview) -> None:
        """Bytes that are no file's payload."""
        self._raw += data
        if len(self._raw) > PIECE_SIZE:
            self._write_raw(len(self._raw) - len(self._raw) % PIECE_SIZE)

    def begin(self, entry: Entry) -> None:
        """The headers of ``entry`` are complete."""
        self._write_raw(len(self._raw))
        self._entry = entry
        self._crc = 0
        self._inline = entry.stored_size > 0 and _has_no_file(entry)
        if self._inline:
            self._write_file(0, None)

    def payload(self, data: memoryview) -> None:
        """Content as stored."""
        if self._inline:
            self.raw(data)
        else:
            self._crc = self._checksum(data, self._crc)

    def end(self) -> None:
        """The content of the entry is complete."""
        entry = self._entry
        if entry is None:
            raise ValueError("end without begin")
        self._padding = -entry.stored_size % 512
        if not self._inline:
            size = entry.stored_size
            self._write_file(size, self._crc.to_bytes(8, "big") if size else None)
        self._entry = None

    # -- what unpacking reports

    def superseded(self, path: bytes, fd: int) -> None:
        """A file is about to be removed from the layer; ``fd`` is open for reading.

        Which record is its, content tells (size and CRC): ``path`` may have come to it through
        a symbolic link.
        """
        size = os.fstat(fd).st_size
        self._save(fd, ((0, size),))
        for entry, crc in self._sparse:
            if entry.size == size and entry.sparse:
                self._save(fd, entry.sparse, crc)

    def finish(self) -> None:
        """Complete the records."""
        mark = self._padding + _END_MARK
        self._write_raw(min(mark, len(self._raw)))
        self._write_raw(len(self._raw))
        self._writer.close()
        if self._lost or self._again:
            self._rewrite()

    # -- records

    def _write_raw(self, size: int) -> None:
        if size == len(self._raw) <= PIECE_SIZE:
            self._writer.segment(self._raw)
            self._raw.clear()
            return
        with memoryview(self._raw) as raw:
            for start in range(0, size, PIECE_SIZE):
                self._writer.segment(raw[start : min(start + PIECE_SIZE, size)])
        del self._raw[:size]

    def _write_file(self, size: int, payload: bytes | None) -> None:
        entry = self._entry
        assert entry is not None
        name = entry.name
        if entry.type is Type.DIRECTORY and not name.endswith(b"/"):
            name += b"/"
        known = _identity(name)
        if known in self._names:
            if not size:
                return
            self._again.add(known)
        self._names.add(known)
        if size and entry.sparse is not None:
            assert payload is not None
            self._sparse.append((entry, payload))
            self._writer.file(name, size, payload, entry.sparse)
        else:
            self._writer.file(name, size, payload)

    # -- content that no file has any more

    def _save(
        self, fd: int, segments: tuple[tuple[int, int], ...], crc: bytes | None = None
    ) -> None:
        """Keep what ``segments`` of the file have, if its CRC is ``crc`` (None: whatever it is)."""
        if self._scratch is None:
            self._scratch = self._temporary()
        start = self._scratch.seek(0, os.SEEK_END)
        value = 0
        for offset, length in segments:
            end = offset + length
            while offset < end and (data := os.pread(fd, min(end - offset, _COPY_SIZE), offset)):
                self._scratch.write(data)
                value = self._checksum(data, value)
                offset += len(data)
        size = self._scratch.tell() - start
        content = size, value.to_bytes(8, "big")
        if content in self._lost or (crc is not None and crc != content[1]):
            self._scratch.truncate(start)
        else:
            self._lost[content] = start, size

    def _rewrite(self) -> None:
        """Write the records anew: lost content as raw bytes, and one file record a name."""
        from lamina.archive.split.reading import read_records

        with self._temporary() as copy:
            writer = RecordWriter(copy)
            self._sink.seek(0)
            for record in read_records(self._sink):
                content = record.size, record.payload or b""
                if record.type != FILE:
                    writer.segment(record.payload or b"")
                elif record.size and content in self._lost:
                    self._write_lost(writer, *self._lost[content])
                elif record.size or _identity(record.path()) not in self._again:
                    writer.file(record.path(), record.size, record.payload, record.sparse)
            writer.close()
            copy.seek(0)
            self._sink.seek(0)
            self._sink.truncate()
            while data := copy.read(_COPY_SIZE):
                self._sink.write(data)
            self._sink.flush()

    def _write_lost(self, writer: RecordWriter, start: int, size: int) -> None:
        assert self._scratch is not None
        self._scratch.seek(start)
        while size:
            data = self._scratch.read(min(size, PIECE_SIZE))
            writer.segment(data)
            size -= len(data)

    def _temporary(self) -> BinaryIO:
        import tempfile

        return tempfile.TemporaryFile(dir=self._scratch_dir)

    # -- life

    def close(self) -> None:
        """Give back the scratch file."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _has_no_file(entry: Entry) -> bool:
    """Whether no file of the layer has the entry's payload just as the archive stores it."""
    return (
        entry.type is not Type.FILE
        or (entry.sparse is not None and entry.stored_size <= PIECE_SIZE)
        or entry.name.startswith(b".wh.")
        or b"/.wh." in entry.name
    )


def _identity(name: bytes) -> int:
    """A number for names that tar-split takes for the same."""
    return hash(name.strip(b"/").removeprefix(b"./"))
