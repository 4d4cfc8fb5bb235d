"""What the drivers share that keep each layer in a directory of its own (drivers.layout)."""

from __future__ import annotations

import errno
import os
import stat
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from lamina.drivers.base import (
    NO_OPTIONS,
    Content,
    DiskUsage,
    Driver,
    FileGetter,
    Mount,
    Staged,
    check_id,
    check_mount_label,
    check_options,
)
from lamina.drivers.layout import AnyLayout, Chain, Layout
from lamina.drivers.references import References
from lamina.errors import LayerExists, LayerInUse, LayerNotFound, OptionUnsupported
from lamina.kernel.idmap import IdMap
from lamina.kernel.mount import umount2
from lamina.kernel.mountinfo import is_mountpoint, mounts_below
from lamina.kernel.path import fd_path, open_in_root
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.archive.tar import Observer, TarReader
    from lamina.archive.transplant import Foreign
    from lamina.archive.unpack import Unpacked, UnpackOptions

_BUSY_RETRIES = 5
_BUSY_PAUSE = 0.1  # seconds


class DirectoryDriver(Driver):
    """Life, mounts and references; how a tree is filled and compared is the driver's own.

    A subclass says what a new layer holds (``_furnish``), how it is mounted (``_mount``) and
    how a tar is unpacked (``_unpack``).
    """

    known_options: frozenset[str] = frozenset()
    image_options: frozenset[str] = frozenset()
    """Options of create."""

    def __init__(
        self,
        home: Path,
        run: Path,
        *,
        options: Mapping[str, str] = NO_OPTIONS,
        idmap: IdMap = IdMap(),
    ) -> None:
        check_options(self.name, options, self.known_options)
        super().__init__(home, run, options=options, idmap=idmap)
        os.makedirs(run, mode=0o700, exist_ok=True)
        self.layout = self._make_layout()
        self.references = References(run)

    def _make_layout(self) -> AnyLayout:
        mapped = self.idmap and os.geteuid() == 0
        return Layout(self.home, self.idmap.root[1] if mapped else None)

    def close(self) -> None:
        """See :meth:`Driver.close`."""
        self.layout.staging.close()

    # -- life ---------------------------------------------------------------------------

    def create(
        self, id: LayerId, parent: LayerId | None = None, *, options: Mapping[str, str] = NO_OPTIONS
    ) -> None:
        """See :meth:`Driver.create`."""
        check_options(self.name, options, self.image_options)
        self._create(id, self.layout.chain_of_child(parent), options)

    def create_read_write(
        self,
        id: LayerId,
        parent: LayerId | None = None,
        *,
        mount_label: str = "",
        options: Mapping[str, str] = NO_OPTIONS,
    ) -> None:
        """See :meth:`Driver.create_read_write`."""
        check_options(self.name, options, self.layer_options)
        chain = self.layout.chain_of_child(parent)
        if "base" in options:
            if parent is not None:
                raise OptionUnsupported("a layer has a parent or a base directory, not both")
            chain = Chain(base=_base_directory(options["base"]))
        self._create(id, chain, options)

    def _create(self, id: LayerId, chain: Chain, options: Mapping[str, str]) -> None:
        check_id(id)
        if self.layout.exists(id):
            raise LayerExists(id)
        with self.layout.staging.directory() as staged:
            if chain.parent is None:
                self._furnish(staged, chain, options)
                self.layout.commit(staged, id, chain)
                return
            with self._there(chain.parent):
                self._furnish(staged, chain, options)
            with self.references.transition(chain.parent):
                self.layout.commit(staged, id, chain)

    @abstractmethod
    def _furnish(self, staged: str, chain: Chain, options: Mapping[str, str]) -> None:
        """Make what a layer's directory holds."""

    def remove(self, id: LayerId, *, pins: bool = False) -> None:
        """See :meth:`Driver.remove`."""
        with self.layout.staging.directory() as staged, self.references.transition(id):
            try:
                if self.layout.has_children(id):  # before its mount goes, which they may need
                    raise LayerInUse(id, "it has child layers")
                if pins:
                    self.references.unpin_all(id)
                if self.references.taken_elsewhere(id):
                    raise LayerInUse(id, "it is mounted")
                self.references.drop(id)
                self._unmount(id)
                self.layout.detach(id, staged)
            except LayerNotFound:
                pass
            self.references.forget(id)

    def exists(self, id: LayerId) -> bool:
        """See :meth:`Driver.exists`."""
        return self.layout.exists(id)

    def ids(self) -> Iterator[LayerId]:
        """See :meth:`Driver.ids`."""
        return self.layout.ids()

    def parent(self, id: LayerId) -> LayerId | None:
        """See :meth:`Driver.parent`."""
        return self.layout.chain(id).parent

    # -- mounts -------------------------------------------------------------------------

    def get(self, id: LayerId, mount_label: str = "") -> Path:
        """See :meth:`Driver.get`."""
        with self.references.transition(id):
            path = self._mount(id, check_mount_label(mount_label))
            self.references.acquire(id)
            return path

    def put(self, id: LayerId) -> None:
        """See :meth:`Driver.put`."""
        with self.references.transition(id):
            if self.references.release(id):
                self._unmount(id)

    def pin(self, id: LayerId, mount_label: str = "", *, here: bool = False) -> Path:
        """See :meth:`Driver.pin`."""
        with self.references.transition(id):
            stale = self.references.pins(id) if here and not self._stands(id) else 0
            if stale:
                self.references.unpin_all(id)  # else the mount would count as another namespace's
            path = self._mount(id, check_mount_label(mount_label))
            pins = 0 if path == Path(self._mountpoint(id)) else stale  # some need no mount
            self.references.pin(id, pins + 1)
            return path

    def unpin(self, id: LayerId) -> bool:
        """See :meth:`Driver.unpin`."""
        with self.references.transition(id):
            pinned = self.references.unpin(id)
            if not self.references.taken(id):
                self._unmount(id)
            return pinned

    def mounts(self, id: LayerId, *, readonly: bool = False) -> list[Mount]:
        """See :meth:`Driver.mounts`: a bind of the driver's own mount, which is pinned."""
        return super().mounts(id, readonly=readonly or self.layout.has_children(id))

    def cleanup(self, *, pins: bool = False) -> None:
        """See :meth:`Driver.cleanup`."""
        layers = os.fsencode(os.path.realpath(self._mounts_home())) + b"/"
        below = (point.target.removeprefix(layers) for point in mounts_below(layers))
        standing = {LayerId(os.fsdecode(path.partition(b"/")[0])) for path in below}
        pinned = self.references.pinned() if pins else []
        for id in standing.union(self.references.held(), pinned):
            with self.references.transition(id):
                self.references.drop(id)
                if pins:
                    self.references.unpin_all(id)
                if not self.references.taken_elsewhere(id):
                    self._unmount(id)
        self.close()

    def _mounts_home(self) -> Path:
        """Where the mount points are: directories called after their layers, or in such."""
        return self.home / "layers"

    @abstractmethod
    def _mount(self, id: LayerId, mount_label: str) -> Path:
        """Mount the layer unless it is; within a transition. Where its tree is."""

    def _mountpoint(self, id: LayerId) -> str:
        return self.layout.path(id, "merged")

    def _stands(self, id: LayerId) -> bool:
        """Whether the layer is mounted, in this mount namespace; within a transition."""
        return _is_mounted(self._mountpoint(id))

    def _unmount(self, id: LayerId) -> None:
        """Unmount the layer if it is mounted; within a transition.

        EBUSY may pass: a child that another thread forked has all our files open until it execs.
        """
        target = self._mountpoint(id)
        retries = _BUSY_RETRIES
        while _is_mounted(target):
            try:
                self._detach_mount(id, target)
            except OSError as error:
                if error.errno != errno.EBUSY or not retries:
                    raise
                retries -= 1
                time.sleep(_BUSY_PAUSE)
        self._unmounted(id)

    def _detach_mount(self, id: LayerId, target: str) -> None:
        """Unmount ``target``."""
        umount2(target)

    def _unmounted(self, id: LayerId) -> None:
        """Do what is to be done when a layer is not, or no longer, mounted; often nothing."""

    @contextmanager
    def _there(self, id: LayerId) -> Iterator[None]:
        """Turn what fails because another process removed the layer into LayerNotFound."""
        try:
            yield
        except FileNotFoundError:
            if self.layout.exists(id):
                raise
            raise LayerNotFound(id) from None

    def _hold(self, id: LayerId) -> Callable[[], None]:
        """Keep a layer from being removed; returns what ends that."""
        with self.references.transition(id):
            if not self.layout.exists(id):
                raise LayerNotFound(id)
            self.references.acquire(id)
        return lambda: self.put(id)

    # -- differences --------------------------------------------------------------------

    def apply(
        self,
        id: LayerId,
        parent: LayerId | None,
        stream: BinaryIO,
        *,
        observer: Observer | None = None,
        options: UnpackOptions | None = None,
    ) -> Unpacked:
        """See :meth:`Driver.apply`."""
        from lamina.archive.tar import TarReader
        from lamina.archive.unpack import UnpackOptions
        from lamina.drivers import naive

        def reader() -> TarReader:
            return TarReader(stream, observer=observer)

        options = options or UnpackOptions()
        chain = self.layout.chain(id)
        if parent != chain.parent:
            with self.layout.staging.directory() as directory:
                with self.references.transition(id):
                    self._check_idle(id)
                return naive.apply(self, id, reader(), options, directory)
        with self._there(id):
            lowers = self._lowers_to_fill(id, chain)
            with self._stage(reader, lambda: lowers, options) as staged:
                self._place(staged, id, chain)
                return staged.unpacked

    @contextmanager
    def stage(
        self,
        stream: BinaryIO,
        below: Callable[[], Staged | LayerId | None],
        *,
        observer: Observer | None = None,
        options: UnpackOptions | None = None,
    ) -> Iterator[Staged]:
        """See :meth:`Driver.stage`."""
        from lamina.archive.tar import TarReader
        from lamina.archive.unpack import UnpackOptions

        def reader() -> TarReader:
            return TarReader(stream, observer=observer)

        with ExitStack() as held:
            lowers = cache(lambda: self._lowers_on(below(), held))
            with self._stage(reader, lowers, options or UnpackOptions()) as staged:
                yield staged

    @contextmanager
    def _stage(
        self,
        reader: Callable[[], TarReader],
        lowers: Callable[[], list[Path]],
        options: UnpackOptions,
    ) -> Iterator[StagedDirectory]:
        """A layer unpacked; ``reader`` is called once, and its buffers are gone in the block."""
        with self.layout.staging.directory() as directory:
            unpacked = self._unpack(directory, reader(), lowers, options)
            yield StagedDirectory(directory, unpacked, lowers)

    def place(self, id: LayerId, parent: LayerId | None, staged: Staged) -> None:
        """See :meth:`Driver.place`."""
        assert isinstance(staged, StagedDirectory)
        chain = self.layout.chain(id)
        if parent != chain.parent:
            raise LayerNotFound(id)  # it stands on another one
        with self._there(id):
            self._place(staged, id, chain)

    def _place(self, staged: StagedDirectory, id: LayerId, chain: Chain) -> None:
        self._complete(staged.directory, id)
        self._let_appear(staged.directory, id, chain)

    def _lowers_on(self, below: Staged | LayerId | None, held: ExitStack) -> list[Path]:
        """The directories of what a staged layer stands on, nearest first; there as long as
        ``held`` is."""
        if isinstance(below, StagedDirectory):
            return [Path(below.directory, self.staged_part), *below.lowers()]
        assert below is None or isinstance(below, str)
        return [Path(path) for path in self._directories(self.layout.chain_of_child(below))]

    def copy_in(
        self,
        id: LayerId,
        parent: LayerId | None,
        layer: Foreign,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """See :meth:`Driver.copy_in`. Where owners are mapped, here or there, it goes by tar."""
        chain = self.layout.chain(id)
        if self.idmap or layer.idmap or parent != chain.parent:
            return super().copy_in(id, parent, layer, progress=progress)
        with self.layout.staging.directory() as staged:
            with self._there(id):
                size = self._copy(staged, id, layer, progress)
            self._let_appear(staged, id, chain)
        return size

    def _let_appear(self, staged: str, id: LayerId, chain: Chain) -> None:
        """Settle what was staged for a layer on ``chain``, if that is still there and unused."""
        with self.references.transition(id):
            if self.layout.chain(id) != chain:
                raise LayerNotFound(id)  # removed meanwhile, and made anew on another parent
            self._check_idle(id)
            self._settle(staged, id)

    def _check_idle(self, id: LayerId) -> None:
        """Raise LayerInUse where the layer's content must not change; within a transition."""
        if self.references.taken(id):
            raise LayerInUse(id, "it is mounted")
        if self.layout.has_children(id):
            raise LayerInUse(id, "it has child layers")

    staged_part = "diff"
    """Where below a staged directory a layer's own files are, as layers above it read them."""

    @abstractmethod
    def _directories(self, chain: Chain) -> list[str]:
        """The directories that show a chain's tree, nearest first."""

    def _lowers_to_fill(self, id: LayerId, chain: Chain) -> list[Path]:
        """What lies below what is unpacked into the layer ``id``."""
        return [Path(path) for path in self._directories(chain)]

    @abstractmethod
    def _unpack(
        self,
        staged: str,
        reader: TarReader,
        lowers: Callable[[], list[Path]],
        options: UnpackOptions,
    ) -> Unpacked:
        """Unpack a tar to :attr:`staged_part` below ``staged``; ``lowers`` may wait."""

    def _complete(self, staged: str, id: LayerId) -> None:
        """Make what was unpacked what :meth:`_settle` wants; no lock is held. Often nothing."""

    @abstractmethod
    def _copy(
        self,
        staged: str,
        id: LayerId,
        layer: Foreign,
        progress: Callable[[int], None] | None,
    ) -> int:
        """Make below ``staged`` what a foreign layer says; bytes of its files."""

    @abstractmethod
    def _settle(self, staged: str, id: LayerId) -> None:
        """Make what was unpacked below ``staged`` the layer's content; within a transition."""

    def usage(self, id: LayerId) -> DiskUsage:
        """See :meth:`Driver.usage`."""
        from lamina.drivers.diskusage import disk_usage

        with self._there(id):
            return disk_usage(self.layout.path(id, "diff"))

    def contents(self, id: LayerId) -> Iterator[Content]:
        """See :meth:`Driver.contents`."""
        self.layout.chain(id)
        seen: set[int] = set()
        top = os.fsencode(self.layout.path(id, "diff"))
        for where, _, _, fd in os.fwalk(top, follow_symlinks=False):
            with os.scandir(fd) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(status.st_mode) or not status.st_size:
                        continue
                    if status.st_nlink > 1 and status.st_ino in seen:
                        continue
                    seen.add(status.st_ino)
                    path = os.path.join(where, os.fsencode(entry.name))
                    name = path[len(top) + 1 :]
                    yield Content(name, os.fsdecode(path), 0, status.st_size)

    def diff_getter(self, id: LayerId) -> FileGetter:
        """See :meth:`Driver.diff_getter`."""
        release = self._hold(id)
        return DirectoryGetter(self.layout.path(id, "diff"), release)


class StagedDirectory(NamedTuple):
    """A layer unpacked in the staging place; see :class:`lamina.drivers.base.Staged`."""

    directory: str
    unpacked: Unpacked
    lowers: Callable[[], list[Path]]
    """The directories of what it was unpacked for, nearest first; waits for them."""


class DirectoryGetter:
    """Reads files below one directory; nothing outside it can be named."""

    def __init__(self, directory: str, on_close: Callable[[], None]) -> None:
        self._on_close = on_close
        try:
            self._fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            on_close()
            raise

    def open(self, name: bytes) -> BinaryIO:
        """See :meth:`FileGetter.open`."""
        path = name.lstrip(b"/")
        # Looked at before it is opened: opening a device or a FIFO may do anything.
        fd = open_in_root(self._fd, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file", os.fsdecode(name))
            return open(fd_path(fd), "rb")
        finally:
            os.close(fd)

    def close(self) -> None:
        """See :meth:`FileGetter.close`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._on_close()


def _is_mounted(target: str) -> bool:
    try:
        return is_mountpoint(target)
    except FileNotFoundError:
        return False


def _base_directory(text: str) -> Path:
    base = Path(text)
    if not base.is_absolute() or not base.is_dir():
        raise OptionUnsupported(f"base is not the absolute path of a directory: {text!r}")
    return base.resolve()
