"""Reading a tar stream, one entry after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from mmap import mmap
from typing import NoReturn, Protocol

from lamina.archive.tar import header, pax, sparse
from lamina.archive.tar.entry import Entry, Limits, Type
from lamina.archive.tar.header import BLOCK, ZERO_BLOCK, Format
from lamina.archive.tar.pax import Extension
from lamina.archive.tar.recognise import refuse
from lamina.archive.tar.source import Readable, Source, truncated
from lamina.errors import InvalidArchive


class Observer(Protocol):
    """Sees the whole stream pass, in order: what raw and payload get is every byte of it.

    Each entry: raw (its headers, once or more), begin, payload (not at all, or once or
    more), end; padding is raw again. A memoryview is valid during the call only.
    """

    def raw(self, data: memoryview) -> None:
        """Bytes that are no file's payload: headers, sparse maps, padding, all from the end on."""

    def begin(self, entry: Entry) -> None:
        """The headers of ``entry`` are read; its payload, if any, comes next."""

    def payload(self, data: memoryview) -> None:
        """Payload as stored."""

    def end(self) -> None:
        """The payload of the entry is complete."""


class Unobserved:
    """An observer that does nothing with what it sees."""

    def raw(self, data: memoryview) -> None:
        """See :class:`Observer`."""

    def begin(self, entry: Entry) -> None:
        """See :class:`Observer`."""

    def payload(self, data: memoryview) -> None:
        """See :class:`Observer`."""

    def end(self) -> None:
        """See :class:`Observer`."""


_DEFAULT_LIMITS = Limits()

# Type flags (besides those of Type) with a meaning of their own.
_EXTENDED = (b"x", b"X")  # X: Solaris' tar, before POSIX
_GLOBAL = b"g"
_LONG_NAME = b"L"
_LONG_LINK = b"K"
_CONTINUATION = b"M"
_IGNORED = (b"V", b"A")  # GNU volume label, Solaris ACL
_NOT_ENTRIES = frozenset(
    (*_EXTENDED, _GLOBAL, _LONG_NAME, _LONG_LINK, _CONTINUATION, *_IGNORED)
)  # fmt: skip
_FLAG = 156  # where in a header the type flag is
_PLAIN_FILE = b"0"
_PLAIN_FILE_BYTE = ord("0")
_SLASH = ord("/")
_SPARSE = b"S"
_DUMPDIR = b"D"


class TarReader:
    """The entries of a tar stream, by iteration.

    ``stream`` is anything with ``readinto`` or ``read``; an open regular file is read from its
    position on, and what is passed over is not read at all. A mapped file is read where it lies,
    from its start, without an observer; nobody may truncate it meanwhile. The content of the
    entry at hand comes from :meth:`chunks` or :meth:`copy_to`; what is left of it is skipped by
    the next step. At the end the stream is read out, and what follows the archive is let go.

    Memory is one buffer of 1 MiB and what ``limits`` allow. Raises InvalidArchive for whatever
    is damaged or beyond the limits, OSError where the stream does.
    """

    def __init__(
        self,
        stream: Readable | mmap,
        *,
        observer: Observer | None = None,
        limits: Limits = _DEFAULT_LIMITS,
    ) -> None:
        self._source = Source.of(stream, observer)
        self._observer = observer
        self._limits = limits
        self._entry: Entry | None = None
        self._remaining = 0  # bytes of the entry's payload
        self._globals: dict[str, bytes] = {}
        self._extension: Extension | None = None
        self._is_pax = False
        self._begun = False
        self._done = False
        self._name: bytes | None = None  # for errors

    def __iter__(self) -> Iterator[Entry]:
        return self._unobserved() if self._observer is None else self

    def _unobserved(self) -> Iterator[Entry]:
        """The entries when nobody looks on: a plain file that is all in the buffer, under a header
        of its own, as most are, is seen to at once, and all else by :meth:`__next__`."""
        source = self._source
        buffer = source.buffer
        while True:
            entry = None
            if self._extension is None and not self._globals and not self._done:
                start = source.start + self._remaining
                if self._entry is not None:
                    start += -self._entry.stored_size % BLOCK
                end = start + BLOCK
                if end <= source.end and buffer[start + _FLAG] == _PLAIN_FILE_BYTE:
                    entry = self._plain_file(buffer[start:end], end)
            if entry is None:
                entry = next(self, None)
                if entry is None:
                    return
            yield entry

    def _plain_file(self, block: bytes, start: int) -> Entry | None:
        """The plain file whose header ``block`` is, when nothing else has to be looked at; its
        payload is in the buffer from ``start`` on."""
        try:
            decoded = header.decode(block)
        except InvalidArchive:
            return None
        if decoded is None:
            return None
        entry = decoded[2]
        source, name, size = self._source, entry.name, entry.stored_size
        if not name or name[-1] == _SLASH or start + size > source.end:
            return None
        source.start = start
        entry.offset = source.base + start
        self._entry = entry
        self._name = name
        self._remaining = size
        self._begun = True
        return entry

    def __next__(self) -> Entry:
        if self._done:
            raise StopIteration
        try:
            if self._entry is not None:
                self._finish_entry(self._entry)
            entry = self._read_entry()
        except InvalidArchive as error:
            self._fail(error)
        if entry is None:
            self._done = True
            raise StopIteration
        self._entry = entry
        self._remaining = entry.stored_size
        if self._observer is not None:
            self._source.report()
            self._observer.begin(entry)
        return entry

    def chunks(self) -> Iterator[memoryview]:
        """What is left of the entry's payload, as stored; a piece is valid until the next step."""
        try:
            while self._remaining:
                part = self._source.payload(self._remaining)
                self._remaining -= len(part)
                yield part
        except InvalidArchive as error:
            self._fail(error)

    def copy_to(self, fd: int) -> None:
        """Write the entry's content at the position of ``fd``, holes as holes.

        For a sparse entry ``fd`` must be a regular file that ends where it stands. To be
        called instead of :meth:`chunks`, not after it.
        """
        source, entry = self._source, self._entry
        if entry is None:
            raise ValueError("no entry is at hand")
        try:
            if entry.sparse is None:
                size, self._remaining = self._remaining, 0
                if size:
                    source.write_payload(fd, size)
                return
            self._remaining = 0
            base = os.lseek(fd, 0, os.SEEK_CUR)
            for offset, length in entry.sparse:
                os.lseek(fd, base + offset, os.SEEK_SET)
                source.write_payload(fd, length)
            os.ftruncate(fd, base + entry.size)
        except InvalidArchive as error:
            self._fail(error)

    def close(self) -> None:
        """Let go of a mapped file, so that it can be closed. Streams are the caller's anyway."""
        self._source.view.release()

    def _fail(self, error: InvalidArchive) -> NoReturn:
        """Name the entry, and have no second try."""
        self._done = True
        if error.entry is None and self._name is not None:
            raise InvalidArchive(error.why, self._name) from None
        raise error

    def _finish_entry(self, entry: Entry) -> None:
        """Pass over what is left of the payload and the padding."""
        source = self._source
        padding = -entry.stored_size % BLOCK
        if self._observer is None:
            rest = self._remaining + padding
            if rest <= source.end - source.start:
                source.start += rest
            else:
                source.skip(self._remaining)
                source.skip_padding(padding)
        else:
            while self._remaining:
                self._remaining -= len(source.payload(self._remaining))
            self._observer.end()
            source.skip_padding(padding)
        self._entry = self._name = None

    def _read_entry(self) -> Entry | None:
        """Read headers up to the next entry's own; None at the end of the archive."""
        source = self._source
        while True:
            if source.end - source.start < BLOCK and not source.fill(BLOCK):
                self._end_of_stream()
                return None
            block = source.buffer[source.start : source.start + BLOCK]
            decoded = header.decode(block)
            if decoded is None:
                self._end_mark(block)
                return None
            self._begun = True
            source.start += BLOCK
            flag, form, entry = decoded
            if flag not in _NOT_ENTRIES:
                break
            self._read_extension(flag, entry)
        self._name = entry.name
        extension = None
        if self._extension is not None or self._globals:
            extension = self._apply_extension(entry)
        if flag != _PLAIN_FILE or extension is not None or entry.name.endswith(b"/"):
            self._settle_payload(entry, flag, form, block, extension)
        if not entry.name:
            raise InvalidArchive(f"an entry without a name before offset {source.offset}")
        entry.offset = source.offset
        size = entry.stored_size
        if size > source.end - source.start and not source.holds(size):
            raise InvalidArchive(f"truncated: {size} bytes of payload go past the archive's end")
        return entry

    def _end_of_stream(self) -> None:
        """The stream ended where a header could be."""
        if not self._begun:
            raise refuse(bytes(self._source.view[self._source.start : self._source.end]))
        if self._source.start < self._source.end or self._extension is not None:
            truncated()
        self._source.drain()

    def _end_mark(self, block: bytes) -> None:
        """Two blocks of zeros end the archive; or one, if nothing follows."""
        source = self._source
        if block != ZERO_BLOCK:
            if not self._begun:
                raise refuse(bytes(block))
            raise InvalidArchive(f"a header with a wrong checksum at offset {source.offset}")
        if self._extension is not None:
            truncated()
        source.start += BLOCK
        if source.fill(BLOCK):
            if source.buffer[source.start : source.start + BLOCK] != ZERO_BLOCK:
                raise InvalidArchive(f"data after a lone zero block at offset {source.offset}")
        elif source.start < source.end:
            truncated()
        source.drain()

    def _read_extension(self, flag: bytes, entry: Entry) -> None:
        """Read a header that speaks of others, and its body."""
        self._name = entry.name
        if flag == _CONTINUATION:
            raise InvalidArchive("a volume of a multi-volume archive")
        size = entry.size
        if flag in _IGNORED:
            self._source.skip(size + -size % BLOCK)
            return
        if flag == _GLOBAL:
            self._is_pax = True
            self._read_globals(size)
            return
        if self._extension is None:
            self._extension = Extension()
        extension = self._extension
        extension.size += size
        body = self._read_body(size, extension.size)
        if flag == _LONG_NAME:
            extension.name = body.split(b"\0", 1)[0]
        elif flag == _LONG_LINK:
            extension.linkname = body.split(b"\0", 1)[0]
        else:
            self._is_pax = True
            pax.parse(body, extension, self._limits)

    def _read_body(self, size: int, total: int) -> bytes:
        """The body of a header, if ``total`` is within bounds."""
        if total > self._limits.extended_header:
            raise InvalidArchive(f"extended headers of {total} bytes")
        body = self._source.take(size)
        self._source.skip(-size % BLOCK)
        return body

    def _read_globals(self, size: int) -> None:
        before = sum(len(key) + len(value) for key, value in self._globals.items())
        extension = Extension(self._globals)
        pax.parse(self._read_body(size, before + size), extension, self._limits)
        if extension.map_0_0:
            raise InvalidArchive("a sparse map in a global header")
        if len(extension.values) > self._limits.global_records:
            raise InvalidArchive(f"more than {self._limits.global_records} global pax records")
        # An empty value takes a record back.
        self._globals = {key: value for key, value in extension.values.items() if value}

    def _apply_extension(self, entry: Entry) -> Extension:
        """Let what came before override the entry's own header; all that is in force."""
        extension = self._extension or Extension()
        self._extension = None
        if extension.name:
            entry.name = self._name = extension.name
        if extension.linkname:
            entry.linkname = extension.linkname
        if self._globals:
            extension.values = {**self._globals, **extension.values}
        self._name = extension.values.get("path") or self._name
        pax.apply(extension.values, entry, self._limits)
        return extension

    def _settle_payload(
        self, entry: Entry, flag: bytes, form: Format, block: bytes, extension: Extension | None
    ) -> None:
        """Find out how much payload follows, what it stands for, and what is a directory."""
        kind = entry.type
        if kind is Type.FILE:
            if flag == _SPARSE:
                self._read_sparse_header(entry, block, extension)
            elif extension is not None:
                self._read_sparse_records(entry, extension)
            if entry.name.endswith(b"/"):
                # Before POSIX, and with some writers still, that is how directories look.
                entry.type = Type.DIRECTORY
                entry.size, entry.sparse = 0, None
        elif kind is Type.DIRECTORY and flag == _DUMPDIR:
            entry.size = 0
        elif kind is Type.HARDLINK and entry.size and self._has_payload(form):
            pass
        else:
            entry.size = entry.stored_size = 0
        if entry.type is Type.DIRECTORY:
            entry.name = entry.name.rstrip(b"/") or b"/"

    def _has_payload(self, form: Format) -> bool:
        """Whether a hard link with a size has as much payload, told as libarchive does.

        In pax archives it has. In older ones it has none whatever the size says; and as pax
        archives need not have extended headers, ustar's are judged by what comes next.
        """
        if self._is_pax:
            return True
        if form is not Format.USTAR:
            return False
        source = self._source
        if not source.fill(BLOCK):
            return source.start < source.end
        block = source.buffer[source.start : source.start + BLOCK]
        return block != ZERO_BLOCK and not header.is_header(block)

    def _read_sparse_header(self, entry: Entry, block: bytes, extension: Extension | None) -> None:
        size, pairs = sparse.read_old_gnu(block, self._source, self._limits)
        if extension is not None and "SCHILY.realsize" in extension.values:
            size = pax.decimal(extension.values["SCHILY.realsize"])
            entry.pax.pop("SCHILY.realsize", None)
        entry.size = size
        entry.sparse = sparse.check(pairs, size, entry.stored_size)

    def _read_sparse_records(self, entry: Entry, extension: Extension) -> None:
        if "SUN.holesdata" in extension.values:
            raise InvalidArchive("a sparse format unknown here")
        found = sparse.read_pax(extension, entry, self._source, self._limits)
        if found is not None:
            entry.size, pairs = found
            entry.sparse = sparse.check(pairs, entry.size, entry.stored_size)
