"""Whether a layer gives back, byte for byte, the tar that it was made of."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Self

from lamina.archive.split import assemble
from lamina.errors import DigestMismatch, LaminaError, LayerBroken
from lamina.kernel.path import open_in_root
from lamina.oci.docker import Fault, Files, LayerRecord
from lamina.progress import ProgressCallback
from lamina.store.adopt.meter import Meter

if TYPE_CHECKING:
    from lamina.store.adopt.source import DockerSource


def tar(files: Files, layer: LayerRecord) -> Iterator[bytes]:
    """The layer's tar, put together from its tar-split record and its files.

    Raises LayerBroken where either is not what it was, and OSError.
    """
    with open_split(files, layer) as records, _Opener(files, layer.cache_id) as opener:
        yield from assemble(records, opener.open, layer=layer.chain_id)


def open_split(files: Files, layer: LayerRecord) -> BinaryIO:
    """The layer's tar-split record; LayerBroken where there is none that can be read."""
    try:
        return files.open(layer.split)
    except OSError as error:
        name = os.path.basename(layer.split)
        raise LayerBroken(layer.chain_id, f"its {name}: {error.strerror}") from error


class _Opener:
    """Opens files of a branch, which come directory by directory, as they do in a tar."""

    def __init__(self, files: Files, branch: str) -> None:
        self._top = files.open_directory(f"aufs/diff/{branch}")
        self._head: bytes | None = None
        self._directory = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
        os.close(self._top)

    def open(self, name: bytes) -> BinaryIO:
        """The content of a file, called as the tar has it. OSError."""
        head, _, base = name.strip(b"/").rpartition(b"/")
        if head != self._head:
            self._leave()
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            self._directory = open_in_root(self._top, head or b".", flags)
            self._head = head
        if base in (b".", b".."):
            raise FileNotFoundError(errno.ENOENT, "no name of a file", os.fsdecode(name))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(base, flags, dir_fd=self._directory)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise FileNotFoundError(errno.ENOENT, "a symbolic link", os.fsdecode(name)) from error
        return os.fdopen(fd, "rb", buffering=0)

    def _leave(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)
        self._head, self._directory = None, -1


def verify(files: Files, layer: LayerRecord, progress: Callable[[int], None] | None = None) -> int:
    """Bytes of the layer's tar, which has the DiffID that it should.

    ``progress`` is called with bytes of it as they are read.

    Raises DigestMismatch, and as :func:`tar`.
    """
    digest, size = hashlib.sha256(), 0
    for data in tar(files, layer):
        digest.update(data)
        size += len(data)
        if progress is not None:
            progress(len(data))
    actual = f"sha256:{digest.hexdigest()}"
    if actual != layer.diff_id:
        raise DigestMismatch(f"tar of layer {layer.chain_id}", layer.diff_id, actual)
    return size


def what_is_wrong(error: LaminaError) -> str:
    """With a layer, which is named beside it."""
    if isinstance(error, DigestMismatch):
        return f"its tar has digest {error.actual}, not {error.expected}"
    return error.why if isinstance(error, LayerBroken) else str(error)


def verify_all(
    source: DockerSource,
    layers: Sequence[LayerRecord] | None = None,
    progress: ProgressCallback | None = None,
) -> list[Fault]:
    """Verify layers, by default every one of every image; returns what is wrong with them."""
    layers = list(source.catalog.layers.values()) if layers is None else layers
    meter = Meter(f"verifying {source.path}", sum(layer.size for layer in layers), progress)
    faults = []
    for layer in layers:
        with meter.part(layer.size):
            fault = _fault(source.files, layer, meter)
        if fault is not None:
            faults.append(fault)
    return faults


def _fault(files: Files, layer: LayerRecord, meter: Meter) -> Fault | None:
    try:
        verify(files, layer, meter.add)
    except LaminaError as error:
        return Fault("layer", layer.chain_id, what_is_wrong(error))
    except OSError as error:
        what = os.path.basename(os.fsdecode(error.filename or b""))
        return Fault("layer", layer.chain_id, f"{what}: {error.strerror}")
    return None
