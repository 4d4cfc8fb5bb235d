"""Opening whatever may hold images, and telling what it is."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from lamina.archive.compression import detect, open_stream
from lamina.archive.tar import TarReader
from lamina.errors import InvalidArchive, InvalidImage, printable
from lamina.oci.archives.docker import DockerArchive, SavedLayout
from lamina.oci.archives.kinds import DOCKER_MANIFEST, Kind, is_plain
from lamina.oci.archives.members import Members
from lamina.oci.layout import Layout, LayoutDirectory

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    class _Raw(io.RawIOBase, BinaryIO):
        """What io's own files are to a type checker."""
else:
    _Raw = io.RawIOBase

_Images: TypeAlias = Layout | DockerArchive

_HEAD = 1 << 20
_PLAIN_HEAD = 4 << 20
_CHUNK = 256 << 10


class PlainTar:
    """A tar that is no image: a root file system's.

    ``stream`` has all of it, from its beginning on, perhaps compressed.
    """

    def __init__(self, stream: BinaryIO, description: str, resources: ExitStack) -> None:
        self.stream = stream
        self.description = description
        self._resources = resources

    def close(self) -> None:
        """Close what was opened for it; not the caller's stream."""
        self._resources.close()


def open_archive(
    source: str | os.PathLike[str] | BinaryIO, spool: Path
) -> Layout | DockerArchive | PlainTar:
    """The images in a file, directory or stream, whatever form they have.

    A regular file that is not compressed is read in place. What is compressed (gzip, zstd, xz,
    bzip2), and what can't seek, goes decompressed into a file without a name in ``spool``; a root
    file system's tar is mostly known by its beginning, and then not spooled.

    Args:
        source: a path, or a stream open for reading; a stream stays the caller's.
        spool: a directory with room for what is decompressed.

    Returns:
        A source of images, or a :class:`PlainTar`.

    Raises:
        InvalidArchive: no tar, or a damaged one.
        InvalidImage: an image that is not what it should be, or a directory that is no layout.
        OSError: it can't be read, or ``spool`` is full; nothing is left there.
    """
    with ExitStack() as resources:
        if isinstance(source, str | os.PathLike):
            description = os.fspath(source)
            if stat.S_ISDIR(os.stat(source).st_mode):
                return LayoutDirectory(source)
            stream: BinaryIO = resources.enter_context(io.FileIO(description, "rb"))
        else:
            stream, description = source, str(getattr(source, "name", "the stream"))
        found = _tell_apart(stream, spool, description)
        if isinstance(found, Layout | DockerArchive):
            return found
        if found is not stream:
            resources.enter_context(found)
        return PlainTar(found, description, resources.pop_all())


def _tell_apart(stream: BinaryIO, spool: Path, description: str) -> _Images | BinaryIO:
    """A source of images; or the stream of a tar that is no image."""
    fd = _regular_file(stream)
    if fd is None:
        head = _read(stream, _HEAD)
        again: BinaryIO = _Replayed(head, stream)
    else:
        start = stream.tell()
        head = os.pread(fd, _HEAD, start)
        again = stream
        if detect(head) == "none":
            return _images(_opened(fd, start), description) or _at(stream, start)
    if _begins_plain(head):
        return again
    spooled = _spooled(again, spool)
    if fd is None:
        return _images(spooled, description, keep=True) or _at(spooled, 0)
    return _images(spooled, description) or _at(stream, start)


def _images(file: io.FileIO, description: str, *, keep: bool = False) -> _Images | None:
    """The images in a plain tar; None if it is no image's, ``file`` then stays open if ``keep``."""
    members = Members(file, description)
    if members.kind is Kind.OCI:
        return SavedLayout(members) if DOCKER_MANIFEST in members else Layout(members)
    if members.kind is Kind.DOCKER:
        return DockerArchive(members)
    if members.kind is Kind.OLD_DOCKER:
        members.close()
        raise InvalidImage(
            f"{printable(description)} was saved by Docker before 1.10; load it into a newer "
            "Docker and save it again"
        )
    if not keep:
        members.close()
    return None


def _regular_file(stream: BinaryIO) -> int | None:
    """The descriptor of the regular file that a stream plainly reads; None if there is none."""
    raw = stream.raw if isinstance(stream, io.BufferedReader) else stream
    if isinstance(raw, io.FileIO) and stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        return raw.fileno()
    return None


def _at(stream: BinaryIO, position: int) -> BinaryIO:
    stream.seek(position)
    return stream


def _read(stream: BinaryIO, size: int) -> bytes:
    """``size`` bytes; fewer only at the end."""
    parts = []
    while size and (data := stream.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _begins_plain(head: bytes) -> bool:
    """Whether what is seen of a stream is certainly a root file system's tar."""
    plain = bytearray()
    try:
        with open_stream(io.BytesIO(head), digest=None, diff_id=False) as stream:
            while len(plain) < _PLAIN_HEAD and (data := stream.read(_CHUNK)):
                plain += data
    except InvalidArchive:
        pass  # cut off, as was to be expected
    try:
        return any(is_plain(entry) for entry in TarReader(io.BytesIO(plain)))
    except InvalidArchive:
        return False


def _spooled(stream: BinaryIO, spool: Path) -> io.FileIO:
    """The plain bytes of a stream in a file without a name, at its beginning."""
    with tempfile.TemporaryFile(dir=spool) as file:
        with open_stream(stream, digest=None, diff_id=False) as plain:
            while data := plain.read(_CHUNK):
                file.write(data)
        file.flush()
        return _opened(file.fileno(), 0)


def _opened(fd: int, start: int) -> io.FileIO:
    """A file by a descriptor of its own, which shares the position."""
    file = io.FileIO(os.dup(fd), "rb")
    file.seek(start)
    return file


class _Replayed(_Raw):
    """A stream that can't seek, from its beginning on, of which ``head`` was read already.

    Closing it leaves the stream open.
    """

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        super().__init__()
        self._head = memoryview(head)
        self._stream = stream

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes; all for -1 or None."""
        if size is None or size < 0:
            return self.readall()
        if not self._head:
            return self._stream.read(size)
        data = bytes(self._head[:size])
        self._head = self._head[size:]
        return data

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Some bytes; none at the end only."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
