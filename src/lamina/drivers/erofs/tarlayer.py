"""The files of a layer that is a tar with an index (see the package)."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, overload

from lamina.drivers.base import Content
from lamina.drivers.erofs import sealing
from lamina.drivers.erofs.ownermap import UNMAPPED, OwnerMap
from lamina.drivers.overlaymount import detached_path
from lamina.errors import LayerBroken, LayerUnsupported, MountError
from lamina.kernel import erofs

if TYPE_CHECKING:
    from lamina.archive.compression import Decompressed
    from lamina.archive.erofs import Image
    from lamina.archive.erofs.below import Below
    from lamina.archive.tar import Observer
    from lamina.archive.unpack import Unpacked

Staging: TypeAlias = Callable[[], AbstractContextManager[str]]
"""Gives a directory to make something in, for a block."""

_READ_ONLY = 0o444
_KEPT_INDEX = 1 << 16
"""Bytes of an index, of 500 entries or so, that is read once for all layers above it: of an image
with very many layers most are small."""
_NOT_TO_BE_WRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class TarLayer:
    """A layer below the directory ``path``, staged or not. ``owners`` is what its mounts show.

    ``names`` are those of its files, where they are known; for what is about to change they are
    not.
    """

    __slots__ = ("_kept", "_names", "owners", "path")

    def __init__(
        self, path: str, owners: OwnerMap = UNMAPPED, names: Set[str] | None = None
    ) -> None:
        self.path = path
        self.owners = owners
        self._names = names
        self._kept: Image | None = None

    def _has(self, name: str) -> bool:
        if self._names is not None:
            return name in self._names
        return os.path.exists(f"{self.path}/{name}")

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
        return self._has("index")

    @property
    def is_merged(self) -> bool:
        """Whether the layer and all below it have an index as one."""
        return self._has("chain")

    @property
    def has_tar(self) -> bool:
        """Whether it has a tar, which a layer that is a directory has too if it came from one."""
        return self._has("tar")

    @property
    def devices(self) -> list[str]:
        """The files behind the index, in the order of its device table."""
        return [self.tar, self.beside] if self._has("beside") else [self.tar]

    def facts(self) -> dict[str, Any]:
        """What is recorded of it: ``size``, bytes of its files, and ``diff_id``."""
        with open(f"{self.path}/facts", "rb") as file:
            found: dict[str, Any] = json.load(file)
            return found

    def open_mount(self, label: str = "") -> int:
        """A detached mount of it alone, with overlayfs's marks for whiteouts.

        ``label`` is an SELinux context, or "".

        Raises LayerBroken where fs-verity says that a file is another one, MountError, OSError.
        """
        self.check_seal()
        return _open_mount(self.index, self.devices, self.owners, label)

    def check_seal(self) -> None:
        """Raise LayerBroken where fs-verity says that a file is not what was recorded; OSError."""
        if self._has(sealing.RECORD):
            sealing.check(self.path)

    @contextmanager
    def mounted(self) -> Iterator[str]:
        """A path to :meth:`open_mount`, good for this process and this block."""
        with _path_to(self.open_mount()) as path:
            yield path

    @contextmanager
    def image(self) -> Iterator[Image]:
        """Its index and contents, to be read without a mount."""
        from lamina.archive.erofs import open_devices

        with open_devices(self.read_index(), self.devices) as image:
            yield image

    def read_index(self) -> Image:
        """Its index alone; a small one is kept in memory for the next time."""
        from lamina.archive.erofs import Image

        if self._kept is not None:
            return self._kept
        with open(self.index, "rb") as stream:
            data = stream.read()
        image = Image(data)
        if len(data) <= _KEPT_INDEX:
            self._kept = image
        return image

    def write_tar(
        self,
        stream: BinaryIO,
        below: Callable[[], Below],
        observer: Observer | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Unpacked:
        """Write a tar as it comes, with its index, in one pass.

        ``progress`` is called now and then with how many bytes of the tar are done.
        Raises InvalidArchive, UnmappedId, LayerUnsupported, OSError; the tar is whole for
        LayerUnsupported.
        """
        from lamina.archive.erofs import IndexBuilder, Tee
        from lamina.archive.tar import TarReader
        from lamina.archive.unpack import Unpacked

        builder = IndexBuilder(lowers=below, beside=Path(self.beside), idmap=self.owners.idmap)
        try:
            with (
                open(self.tar, "x+b", buffering=0) as file,
                _digest_of(stream, file.fileno()) as diff_id_of,
            ):

                def wrote(end: int) -> None:
                    diff_id_of.wrote(end)
                    if progress is not None:
                        progress(end)

                os.fchmod(file.fileno(), _READ_ONLY)
                tee = Tee(stream, file.fileno(), wrote)
                reader = TarReader(tee, observer=observer)
                try:
                    builder.read(reader)
                except LayerUnsupported:
                    for _ in reader:  # it is to be unpacked, all of it
                        pass
                    tee.finish()
                    raise
                tee.finish()
                diff_id = f"sha256:{diff_id_of.hexdigest(tee.size)}"
            with open(self.index, "xb") as index:
                built = builder.finish(index.fileno(), identity=diff_id, tar_size=tee.size)
                os.fchmod(index.fileno(), _READ_ONLY)
        finally:
            builder.discard()
        digests = sealing.digests(self.path)
        with open(f"{self.path}/facts", "w") as facts:
            json.dump({"size": built.size, "diff_id": diff_id, "digests": digests}, facts)
        sealing.seal(self.path)
        return Unpacked(built.size, built.entries, 0)

    def verify(self) -> None:
        """Compare the index with what was recorded of it; the tar has its DiffID for that.

        Raises LayerBroken, OSError.
        """
        sealing.check(self.path)
        recorded = self.facts().get("digests", {})
        for name, digest in sealing.digests(self.path).items():
            if recorded.get(name, digest) != digest:
                raise LayerBroken(os.path.basename(self.path), f"its {name} is not what it was")

    def indexes(self) -> Iterator[os.stat_result]:
        """What is known of its indexes, that of the chain among them if there is one."""
        for path in (self.index, self.chain):
            with suppress(FileNotFoundError):
                yield os.stat(path)

    def contents(self) -> Iterator[Content]:
        """Where the contents of its files lie, and the tar as a whole first."""
        yield Content(b"", self.tar, 0, os.stat(self.tar).st_size)
        devices, seen = self.devices, set[int]()
        with self.image() as image:
            for path, inode in image.walk():
                if not inode.is_file or not inode.size or inode.nid in seen:
                    continue
                seen.add(inode.nid)
                first, *more = image.extents(inode)
                if not more and first.source is not None and first.source >= 0:
                    yield Content(path, devices[first.source], first.position, inode.size)

    def move_to(self, other: TarLayer) -> None:
        """Let another layer, which has none, have these files; the index last."""
        for name in ("tar", "beside", "facts", "verity", "index"):
            try:
                os.rename(f"{self.path}/{name}", f"{other.path}/{name}")
            except FileNotFoundError:
                if name not in ("beside", "verity"):
                    raise

    def remove(self) -> None:
        """Delete the files, the index first."""
        for name in ("index", "chain", "facts", "verity", "beside", "tar"):
            try:
                os.unlink(f"{self.path}/{name}")
            except FileNotFoundError:
                pass


def _open_mount(index: str, devices: list[str], owners: OwnerMap, label: str) -> int:
    fd = erofs.open_mount(index, devices, label=label)
    try:
        owners.apply(fd, index)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def _path_to(fd: int) -> Iterator[str]:
    try:
        yield detached_path(fd)
    finally:
        os.close(fd)


class Chain:
    """The index of a layer and all below it as one, ``layers`` being tars, the topmost first."""

    def __init__(self, layers: Sequence[TarLayer]) -> None:
        self.layers = layers

    def open_mount(self, staging: Staging, label: str = "") -> int:
        """A detached mount; the index is made in a directory of ``staging`` if it is not there.

        Raises MountError, also where there is no room for the index; LayerUnsupported, LayerBroken.
        """
        top = self.layers[0]
        if len(self.layers) == 1:
            return top.open_mount(label)
        self.prepare(staging)
        devices = [device for layer in reversed(self.layers) for device in layer.devices]
        return _open_mount(top.chain, devices, top.owners, label)

    def prepare(self, staging: Staging) -> None:
        """Make the index, if one is needed and not there. Raises as :meth:`open_mount`."""
        if len(self.layers) == 1:
            return
        for layer in self.layers:
            layer.check_seal()
        if not os.path.exists(self.layers[0].chain):
            self._keep(staging)

    def read_indexes(self) -> list[Image]:
        """The merged index, if it is there, else those of the layers, topmost first."""
        from lamina.archive.erofs import Image

        for layer in self.layers:
            sealing.check(layer.path)
        with suppress(FileNotFoundError):
            if len(self.layers) > 1:
                return [Image(Path(self.layers[0].chain).read_bytes())]
        return [layer.read_index() for layer in self.layers]

    @contextmanager
    def mounted(self, staging: Staging) -> Iterator[str]:
        """A path to :meth:`open_mount`, good for this process and this block."""
        with _path_to(self.open_mount(staging)) as path:
            yield path

    def verify(self, staging: str, *, repair: bool) -> list[str]:
        """Compare the merged index, if there is one, with one made anew.

        With ``repair`` a wrong one is deleted, to be made again, and that is said.
        Raises LayerBroken, InvalidArchive, OSError.
        """
        top = self.layers[0]
        if not os.path.exists(top.chain):
            return []
        self._make(f"{staging}/chain")
        if filecmp.cmp(f"{staging}/chain", top.chain, shallow=False):
            return []
        what = "its merged index is not what it was"
        if not repair:
            raise LayerBroken(os.path.basename(top.path), what)
        os.unlink(top.chain)  # what is mounted keeps it
        return [what]

    def _keep(self, staging: Staging) -> None:
        top = self.layers[0]
        try:
            with staging() as directory:
                self._make(f"{directory}/chain")
                os.rename(f"{directory}/chain", top.chain)  # another process's has the same bytes
        except OSError as error:
            if error.errno not in _NOT_TO_BE_WRITTEN:
                raise
            raise MountError(error.errno or 0, "write a merged index", top.chain) from error

    def _make(self, staged: str) -> None:
        from lamina.archive.erofs import Image, merge_indexes

        identity = hashlib.sha256()
        images = []
        for layer in reversed(self.layers):
            with open(layer.index, "rb") as index:
                images.append(Image(index.read()))
            identity.update(layer.facts()["diff_id"].encode())
        with open(staged, "xb") as file:
            merge_indexes(images, file.fileno(), identity=f"sha256:{identity.hexdigest()}")
            os.fchmod(file.fileno(), _READ_ONLY)
            os.fsync(file.fileno())  # no layer that is recorded later has it synced


@contextmanager
def merged_view(layers: Sequence[TarLayer]) -> Iterator[Below]:
    """The tree that some layers show, topmost first; an index is read when it is first asked."""
    from lamina.archive.erofs import Layers

    with ExitStack() as stack:
        yield Layers(_Indexes(layers), lambda number: stack.enter_context(layers[number].image()))


class _Indexes(Sequence["Image"]):
    """The indexes of layers, each read when it is first asked for."""

    def __init__(self, layers: Sequence[TarLayer]) -> None:
        self._layers = layers
        self._images: list[Image] = []

    def __len__(self) -> int:
        return len(self._layers)

    @overload
    def __getitem__(self, number: int) -> Image: ...
    @overload
    def __getitem__(self, number: slice) -> list[Image]: ...
    def __getitem__(self, number: int | slice) -> Image | list[Image]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        for layer in self._layers[len(self._images) : number + 1]:
            self._images.append(layer.read_index())
        return self._images[number]


class _Digest(Protocol):
    """Of a tar that is being written."""

    def wrote(self, end: int, /) -> None: ...
    def hexdigest(self, size: int, /) -> str: ...


def _digest_of(stream: BinaryIO, fd: int) -> AbstractContextManager[_Digest]:
    """The digest of what comes from ``stream`` and is written to ``fd``."""
    from lamina.archive.compression import Decompressed
    from lamina.archive.following import FollowingHash

    return nullcontext(_Known(stream)) if isinstance(stream, Decompressed) else FollowingHash(fd)


class _Known:
    """The digest that a stream from decompression has itself, at its end."""

    def __init__(self, stream: Decompressed) -> None:
        self._stream = stream

    def wrote(self, end: int, /) -> None:
        """Nothing to do."""

    def hexdigest(self, size: int, /) -> str:
        """What follows the algorithm's name."""
        return self._stream.diff_id.partition(":")[2]
