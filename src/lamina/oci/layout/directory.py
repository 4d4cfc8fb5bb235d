"""An image layout in a directory that any number of processes read and write."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Self

from lamina.errors import InvalidImage, name_full, printable
from lamina.kernel.lock import unlock
from lamina.kernel.path import open_in_root
from lamina.oci.layout.files import Folder
from lamina.oci.layout.names import known_names, named, without_names
from lamina.oci.layout.reading import (
    INDEX,
    OCI_LAYOUT,
    VERSION_FILE,
    Layout,
    blob_path,
    read_index,
)
from lamina.oci.layout.unnamed import Unnamed
from lamina.oci.manifest import SIZE_LIMIT, Index

if TYPE_CHECKING:
    from lamina.oci.descriptor import Descriptor

_CHUNK = 1 << 20
_TEMPORARY = ".lamina-"


class LayoutDirectory(Layout):
    """A layout's directory: a source, and a :class:`lamina.oci.content.Target`.

    A blob is written to a temporary file beside it, synced and renamed, and the index is replaced
    as a whole under a lock on the file ``oci-layout``, so that writers lose nothing of each other
    and readers see nothing half. The temporary files of a killed process go with the next
    ``create``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a layout; :class:`InvalidImage` if it is none."""
        self.folder = Folder(path)
        super().__init__(self.folder)
        self._unnamed = Unnamed()

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """Open a layout to write to; make it, if there is nothing or an empty directory.

        Raises :class:`InvalidImage` for a directory with something else in it, OSError.
        """
        os.makedirs(path, exist_ok=True)
        folder = Folder(path)
        try:
            names = set(os.listdir(folder.fd))
            names = {name for name in names if not name.startswith(_TEMPORARY)}
            if OCI_LAYOUT not in names:
                if names - {INDEX, "blobs"}:
                    raise InvalidImage(
                        f"{printable(folder.path)} is no image layout, and not empty"
                    )
                _write(folder.fd, OCI_LAYOUT, lambda f: f.write(VERSION_FILE), replace=False)
            with _locked(folder.fd):
                if INDEX not in os.listdir(folder.fd):
                    _write(folder.fd, INDEX, lambda file: file.write(Index(manifests=[]).encode()))
            with _directory(folder.fd, "blobs/sha256"):
                pass
            _sweep(folder.fd)
        finally:
            folder.close()
        return cls(path)

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob of this digest and size is there; its bytes are not read."""
        try:
            stream, size = self.files.open(blob_path(descriptor.digest))
        except (FileNotFoundError, InvalidImage):
            return False
        stream.close()
        return size == descriptor.size

    def put(
        self,
        descriptor: Descriptor,
        stream: BinaryIO,
        *,
        reopen: Callable[[], BinaryIO] | None = None,
    ) -> None:
        """See :meth:`lamina.oci.content.Target.put`."""

        def copy(file: BinaryIO) -> None:
            while data := stream.read(_CHUNK):
                file.write(data)

        self._put(descriptor, copy)

    def put_manifest(self, descriptor: Descriptor, data: bytes, name: str | None) -> None:
        """See :meth:`lamina.oci.content.Target.put_manifest`.

        A name takes the place of an entry of that name. A name with neither ``/`` nor ``:`` is a
        tag of this layout, as umoci and skopeo have them.
        """
        if not self.has(descriptor):
            self._put(descriptor, lambda file: file.write(data))
        self._unnamed.put(descriptor, data, name)
        if name is not None:
            self._enter(named(descriptor, name))

    def close(self) -> None:
        """Enter manifests that have no name and are in no index, and close the directory."""
        try:
            for descriptor in self._unnamed.take():
                self._enter(named(descriptor, None))
        finally:
            super().close()

    def _put(self, descriptor: Descriptor, fill: Callable[[BinaryIO], object]) -> None:
        directory, _, name = blob_path(descriptor.digest).rpartition("/")
        try:
            with _directory(self.folder.fd, directory) as fd:
                _write(fd, name, fill)
        except OSError as error:
            name_full(error, self.folder.path)
            raise

    def _enter(self, entry: Descriptor) -> None:
        """Let the index have an entry: in place of its name's, or once if it has no name."""
        with _locked(self.folder.fd):
            index = read_index(self.files)
            if taken := known_names(entry):
                others = (without_names(other, taken) for other in index.manifests)
                index.manifests = [other for other in others if other is not None]
            elif any(other.digest == entry.digest for other in index.manifests):
                return
            index.manifests.append(entry)
            data = index.encode()
            if len(data) > SIZE_LIMIT:
                raise InvalidImage(f"{INDEX} of {printable(self.description)} would be too long")
            _write(self.folder.fd, INDEX, lambda file: file.write(data))


@contextmanager
def _locked(top: int) -> Iterator[None]:
    """Around a change of the index."""
    fd = open_in_root(top, OCI_LAYOUT.encode(), os.O_RDWR)  # NFS wants it writable for this lock
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        unlock(fd)


@contextmanager
def _directory(top: int, path: str) -> Iterator[int]:
    """A directory below ``top``, made if need be."""
    made = ""
    for part in path.split("/"):
        made = f"{made}/{part}" if made else part
        parent = open_in_root(top, (os.path.dirname(made) or ".").encode(), os.O_PATH)
        try:
            os.mkdir(part, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)
    fd = open_in_root(top, path.encode(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(
    directory: int, name: str, fill: Callable[[BinaryIO], object], *, replace: bool = True
) -> None:
    """Let a file appear whole, and stay through a power cut.

    One of that name is replaced or, if others may have locked it, left.
    """
    temporary, file = _new_file(directory)
    try:
        with file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            if replace:
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            else:
                _appear(directory, temporary, name)
        os.fsync(directory)
    except BaseException:
        try:
            os.unlink(temporary, dir_fd=directory)
        except FileNotFoundError:
            pass
        raise


def _appear(directory: int, temporary: str, name: str) -> None:
    try:
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except FileExistsError:
        pass
    os.unlink(temporary, dir_fd=directory)


def _new_file(directory: int) -> tuple[str, BinaryIO]:
    """A temporary file, locked so that nobody takes it for a dead process's."""
    while True:
        name = f"{_TEMPORARY}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(name, flags, 0o666, dir_fd=directory), "wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return name, file
        file.close()  # swept before it was locked


def _sweep(top: int) -> None:
    """Delete what killed processes left half-written."""
    for path in (".", "blobs/sha256"):
        with _directory(top, path) as directory:
            for name in os.listdir(directory):
                if name.startswith(_TEMPORARY):
                    _sweep_file(directory, name)


def _sweep_file(directory: int, name: str) -> None:
    try:
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return  # gone meanwhile, or nothing of ours
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=directory)
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        os.close(fd)
