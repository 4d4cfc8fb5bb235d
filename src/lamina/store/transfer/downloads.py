"""Blobs that come over a network: into files that can be read while they grow.

    ROOT/downloads/ALGORITHM-HEX        what has come so far
    ROOT/downloads/ALGORITHM-HEX.lock   held by who adds to it, or takes it away

What a process leaves that was interrupted or killed, the next one goes on with: nothing is
fetched twice. A file goes once its layer is in the store, or when it proves to be wrong; what is
never asked for again goes by :meth:`Downloads.sweep`, which ``lamina prune`` calls.

A lock is held while bytes come, which needs no other lock, and not while they are unpacked: so
those who fetch the same blobs in another order do not wait for each other for ever. A file that is
complete is only read, and whoever reads it has it open: it may go at any time.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lamina.errors import InvalidImage
from lamina.oci.content import Source
from lamina.oci.descriptor import Descriptor
from lamina.oci.digest import parts
from lamina.store.transfer.stopping import Stop, locked, locked_now

_CHUNK = 256 << 10


class Downloads:
    """The downloads of a store, below ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def claim(self, descriptor: Descriptor, stop: Stop) -> Iterator[Path]:
        """The file of a blob, ours alone within the block; waits for another process's.

        The file stays after the block unless it was removed or renamed.
        """
        self._path.mkdir(mode=0o700, exist_ok=True)
        path = self._path / "-".join(parts(descriptor.digest))
        with locked(f"{path}.lock", stop):
            yield path

    def remove(self, download: Download) -> None:
        """Delete a download's file, unless another process is at it, or it is no longer that."""
        with locked_now(f"{download.path}.lock") as ours:
            if ours and download.is_at(download.path):
                download.path.unlink()

    def size(self) -> int:
        """Bytes of all of them."""
        found = 0
        for path in self._paths():
            with suppress(FileNotFoundError):
                found += path.stat().st_size
        return found

    def sweep(self) -> int:
        """Delete downloads that nobody is at; returns the bytes given back."""
        freed = 0
        for path in self._paths():
            with locked_now(f"{path}.lock") as ours, suppress(FileNotFoundError):
                if ours:
                    size = path.stat().st_size
                    path.unlink()
                    freed += size
        return freed

    def _paths(self) -> set[Path]:
        names = os.listdir(self._path) if self._path.is_dir() else ()
        return {self._path / name.removesuffix(".lock") for name in names}


class Download:
    """One blob: written by :meth:`run` in one thread, read by :meth:`open` in another."""

    def __init__(self, path: Path, descriptor: Descriptor, stop: Stop) -> None:
        """``path`` has been claimed, and stays so till :meth:`run` ends."""
        self.path = path
        self.descriptor = descriptor
        self._stop = stop
        self._grown = threading.Condition()
        self._error: BaseException | None = None
        if path.exists() and path.stat().st_size > descriptor.size:
            path.unlink()  # not cut short: somebody may be reading it
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        self._size = os.fstat(self._file.fileno()).st_size

    def run(self, source: Source) -> None:
        """Fetch what is missing. An error also reaches whoever reads."""
        try:
            if self._size < self.descriptor.size:
                with source.open(self.descriptor, self._size) as stream:
                    self._receive(stream)
        except BaseException as error:
            with self._grown:
                self._error = error
                self._grown.notify_all()
            raise

    def _receive(self, stream: BinaryIO) -> None:
        while data := stream.read(_CHUNK):
            self._stop.check()
            if self._size + len(data) > self.descriptor.size:
                raise InvalidImage(f"blob {self.descriptor.digest} goes on after its size")
            _write(self._file, data)
            with self._grown:
                self._size += len(data)
                self._grown.notify_all()
        if self._size < self.descriptor.size:
            raise InvalidImage(
                f"blob {self.descriptor.digest} ends after {self._size} of "
                f"{self.descriptor.size} bytes"
            )

    def open(self) -> BinaryIO:
        """The blob from its beginning; a read waits until there is something to read."""
        return io.BufferedReader(_Following(self), _CHUNK)

    def read_at(self, offset: int, size: int) -> bytes:
        """Some bytes; nothing at the end only. Raises what :meth:`run` raised."""
        with self._grown:
            while self._size <= offset < self.descriptor.size:
                self._stop.check()
                if self._error is not None:
                    raise self._error
                self._grown.wait(1)
        return os.pread(self._file.fileno(), min(size, self._size - offset), offset)

    def is_at(self, path: Path) -> bool:
        """Whether its file is the one of this path."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Following(io.RawIOBase):
    def __init__(self, download: Download) -> None:
        super().__init__()
        self._download = download
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._download.read_at(self._offset, len(buffer))
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


def _write(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
