"""The files of a layer that is a tar with an index (see the package)."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lamina.kernel import erofs

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from lamina.archive.erofs import Image
    from lamina.archive.erofs.below import Below
    from lamina.archive.tar import Observer
    from lamina.archive.unpack import Unpacked

_READ_ONLY = 0o444


class TarLayer:
    """A layer below the directory ``path``, staged or not."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def tar(self) -> str:
        """The layer's tar."""
        return f"{self.path}/tar"

    @property
    def index(self) -> str:
        """Its index. There last of all: a layer that has one is complete."""
        return f"{self.path}/index"

    @property
    def beside(self) -> str:
        """Contents that can't be read from the tar."""
        return f"{self.path}/beside"

    @property
    def chain(self) -> str:
        """The index of the layer and all below it."""
        return f"{self.path}/chain"

    @property
    def is_complete(self) -> bool:
        """Whether the layer is one with an index."""
        return os.path.exists(self.index)

    @property
    def devices(self) -> list[str]:
        """The files behind the index, in the order of its device table."""
        return [self.tar, self.beside] if os.path.exists(self.beside) else [self.tar]

    def facts(self) -> dict[str, Any]:
        """What is recorded of it: ``size``, bytes of its files."""
        with open(f"{self.path}/facts", "rb") as file:
            found: dict[str, Any] = json.load(file)
            return found

    def open_mount(self) -> int:
        """A detached mount of it alone, with overlayfs's marks for whiteouts."""
        return erofs.open_mount(self.index, self.devices)

    @contextmanager
    def mounted(self) -> Iterator[str]:
        """A path to :meth:`open_mount`, good for this process and this block."""
        fd = self.open_mount()
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    @contextmanager
    def image(self) -> Iterator[Image]:
        """Its index and contents, to be read without a mount."""
        from lamina.archive.erofs import open_image

        with open_image(self.index, self.devices) as image:
            yield image

    def write_tar(
        self,
        stream: BinaryIO,
        below: Callable[[], Below],
        observer: Observer | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Unpacked:
        """Write a tar as it comes, with its index, in one pass.

        ``progress`` is called now and then with how many bytes of the tar are done.
        Raises InvalidArchive, LayerUnsupported, OSError; the tar is whole for LayerUnsupported.
        """
        from lamina.archive.erofs import IndexBuilder
        from lamina.archive.tar import TarReader
        from lamina.archive.unpack import Unpacked

        builder = IndexBuilder(lowers=below, beside=Path(self.beside))
        try:
            with open(self.tar, "xb", buffering=0) as file:
                written = _Written(stream, file, progress)
                builder.read(TarReader(cast(BinaryIO, written), observer=observer))
                written.finish()
                os.fchmod(file.fileno(), _READ_ONLY)
            with open(self.index, "xb") as file:
                built = builder.finish(
                    file.fileno(), identity=written.diff_id, tar_size=written.size
                )
                os.fchmod(file.fileno(), _READ_ONLY)
        finally:
            builder.discard()
        self._write_facts(built.size)
        return Unpacked(built.size, built.entries, 0)

    def _write_facts(self, size: int) -> None:
        with open(f"{self.path}/facts", "w") as file:
            json.dump({"size": size}, file)

    def move_to(self, other: TarLayer) -> None:
        """Let another layer, which has none, have these files; the index last."""
        for name in ("tar", "beside", "facts", "index"):
            try:
                os.rename(f"{self.path}/{name}", f"{other.path}/{name}")
            except FileNotFoundError:
                if name != "beside":
                    raise

    def remove(self) -> None:
        """Delete the files, the index first."""
        for name in ("index", "chain", "facts", "beside", "tar"):
            try:
                os.unlink(f"{self.path}/{name}")
            except FileNotFoundError:
                pass


@contextmanager
def merged_view(layers: Sequence[TarLayer]) -> Iterator[Below]:
    """The tree that some layers show, topmost first."""
    from lamina.archive.erofs import Layers

    with ExitStack() as stack:
        yield Layers([stack.enter_context(layer.image()) for layer in layers])


class _Written(io.RawIOBase):
    """A stream that is written to a file as it is read, and hashed unless it hashes itself.

    Zeros become holes, so that a sparse file costs little though its tar has all of it.
    """

    def __init__(
        self, stream: BinaryIO, file: io.FileIO, progress: Callable[[int], None] | None
    ) -> None:
        from lamina.archive.compression import Decompressed
        from lamina.archive.zeros import PunchedWriter

        super().__init__()
        self._stream = stream
        self._readinto: Callable[[memoryview], int] = getattr(stream, "readinto", self._read)
        self._file = PunchedWriter(file.fileno())
        self._progress = progress
        self._hash = None if isinstance(stream, Decompressed) else hashlib.sha256()

    @property
    def size(self) -> int:
        """Bytes read so far."""
        return self._file.offset

    def finish(self) -> None:
        """Complete the file."""
        self._file.finish()

    @property
    def diff_id(self) -> str:
        """Digest of all that was read, at the end."""
        if self._hash is None:
            found: str = self._stream.diff_id  # type: ignore[attr-defined]
            return found
        return f"sha256:{self._hash.hexdigest()}"

    def readable(self) -> bool:
        return True

    def _read(self, view: memoryview) -> int:
        data = self._stream.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        count = self._readinto(view)
        data = view[:count]
        if self._hash is not None:
            self._hash.update(data)
        self._file.write(data)
        if self._progress is not None:
            self._progress(self.size)
        return count
