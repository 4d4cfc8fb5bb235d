"""The driver contract: how layers are kept on disk and stacked into file systems.

Words
-----
A **layer** is a set of changes to a file system: files added or replaced, names deleted.
Its **parent** is the layer it changes; a layer without a parent changes the empty
directory. A layer's **chain** is the layer, its parent, the parent's parent and so on.
Mounting a layer shows its whole chain as one tree. The caller chooses the **id**.

Life
----
``create`` or ``create_read_write`` makes a layer that changes nothing. It is filled by
``apply_diff`` from a tar, or by writing below the path that ``get`` returns. ``get`` and
``put`` are counted, over all processes that share the driver's run directory: the first
``get`` mounts, the last ``put`` unmounts, and a process that died counts for nothing. Once
a layer has children it is frozen: ``get`` shows it, and writing to it is refused where the
driver can refuse. ``remove`` ends it.

Import an image of two layers::

    driver.create("base")
    driver.apply_diff("base", None, open("base.tar", "rb"))
    driver.create("app", "base")
    driver.apply_diff("app", "base", open("app.tar", "rb"))

Run something on it, look at what it did, and keep that as a third layer::

    driver.create_read_write("box", "app")
    with driver.mounted("box") as root:
        subprocess.run(["chroot", root, "apt-get", "update"])
    for change in driver.changes("box", "app"):
        print(change)
    driver.create("next", "app")
    with driver.diff("box", "app") as tar:
        driver.apply_diff("next", "app", tar)

Throw it away::

    driver.remove("box")

The words and the division into these calls are those of Docker's graph drivers
(``ProtoDriver`` and ``DiffDriver`` in moby's daemon/graphdriver/driver.go).

Threads and processes
---------------------
Every method may be called from any thread and from several processes at once. Calls that
change one id exclude each other by a lock of that id, held for the few system calls of
the change and never while a tar is read or a tree is deleted.

Durability
----------
A layer appears and disappears by one rename. The driver itself does not sync: whoever
records the layer does (``store`` by its ``SyncPolicy``). What a crash leaves half-made lies
in the driver's ``staging`` and is deleted by the next driver that opens the home.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple, Protocol

from lamina.errors import InvalidName, OptionUnsupported, printable
from lamina.kernel.idmap import IdMap
from lamina.types import LayerId

# Starting a container neither packs nor unpacks: drivers import those parts of archive/ in the
# methods that use them, for they would double the time that a command takes to start.
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from lamina.archive.changes import Change
    from lamina.archive.pack import PackOptions
    from lamina.archive.tar import Observer
    from lamina.archive.transplant import Foreign
    from lamina.archive.unpack import Unpacked, UnpackOptions

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]{0,199}")
_LABEL = re.compile(r'[^"\\\x00-\x1f\x7f\ud800-\udfff]{0,1024}')

NO_OPTIONS: Mapping[str, str] = {}


def check_id(id: str) -> LayerId:
    """``id`` as a :data:`LayerId`, if it can be one.

    Raises:
        InvalidName: unless it is 1 to 200 letters, digits and ``_.+:@-``, the first of them
            a letter, digit or underscore: a name that is safe as one path component.
    """
    if not isinstance(id, str) or not _ID.fullmatch(id) or id.endswith("-removing"):
        raise InvalidName(
            f"not a layer id: '{printable(id if isinstance(id, str) else repr(id))}' "
            "(1 to 200 letters, digits and _.+:@-)"
        )
    return LayerId(id)


def check_mount_label(label: str) -> str:
    """``label``, if it can be a security context in the options of a mount; "" is none.

    Raises:
        InvalidName: it is long, or has a quote, a backslash or a control character, with which it
            could end the option that it is put into and be followed by others.
    """
    if not _LABEL.fullmatch(label):
        raise InvalidName(f"not a mount label: '{printable(label)}'")
    return label


def check_options(driver: str, options: Mapping[str, str], known: frozenset[str]) -> None:
    """Raise :class:`OptionUnsupported` for an option that is not in ``known``."""
    for name in options:
        if name not in known:
            has = f"it has: {', '.join(sorted(known))}" if known else "it has none"
            raise OptionUnsupported(f"driver {driver} has no storage option '{name}' ({has})")


def nearest_existing(path: Path) -> Path:
    """``path``, or the first of its parents that is there."""
    while not path.exists():
        path = path.parent
    return path


def missing_elsewhere(place: Path) -> str:
    """What is wrong with a layer whose files someone else kept."""
    return f"its files were in {place}, which is gone or not mounted"


def bind_mount(path: str | Path, *, readonly: bool) -> Mount:
    """The mount that shows the directory ``path``."""
    return Mount("bind", str(path), ("rbind", "ro" if readonly else "rw"))


class FileGetter(Protocol):
    """Reads single files of a layer, as tar-split needs them to put a tar together again."""

    def open(self, name: bytes) -> BinaryIO:
        """The content of the regular file ``name`` (relative to the layer, as in its tar).

        Raises:
            FileNotFoundError: the layer has no such regular file of its own.
        """

    def close(self) -> None:
        """Give up what the getter holds."""


class Mount(NamedTuple):
    """A mount to be made, in the words of mount(8), by whoever wants to see a layer."""

    type: str
    """``bind``, ``overlay`` or another file system's name."""
    source: str
    options: tuple[str, ...] = ()


class DiskUsage(NamedTuple):
    """What a layer itself takes, without those below it."""

    size: int
    """Bytes of disk: blocks, not what readers see."""
    inodes: int


class Content(NamedTuple):
    """Where the bytes of a file lie on disk."""

    name: bytes
    """In the layer; empty for the layer's whole tar."""
    file: str
    offset: int
    size: int


class Staged(Protocol):
    """A layer that was unpacked and is not yet one of the home. See :meth:`Driver.stage`."""

    @property
    def unpacked(self) -> Unpacked:
        """What came of its tar."""


class Driver(ABC):
    """One way of keeping layers. See the module for words, life cycle and examples.

    Args:
        home: the driver's directory, on disk; made if missing (0700).
        run: a directory on a file system that is empty after a reboot (``/run``), for locks
            and mount references; made if missing (0700).
        options: storage options for the driver as a whole.
        idmap: owners in layers are container ids, on disk host ids; this maps them.

    Raises (the constructor):
        DriverUnsupported: this driver can't work here, with the reason.
        OptionUnsupported: an option that it does not have.
    """

    name: ClassVar[str]
    keeps_tars: ClassVar[bool] = False
    """Whether :meth:`diff` of a layer against its parent is the very tar that was applied."""
    layer_options: frozenset[str] = frozenset()
    """Options that :meth:`create_read_write` has."""

    def __init__(
        self,
        home: Path,
        run: Path,
        *,
        options: Mapping[str, str] = NO_OPTIONS,
        idmap: IdMap = IdMap(),
    ) -> None:
        self.home = home
        self.run = run
        self.options = options
        self.idmap = idmap

    @classmethod
    @abstractmethod
    def probe(cls, home: Path, *, idmap: IdMap = IdMap()) -> None:
        """Say whether the driver can work with its layers in ``home``, and with these owners.

        ``home`` need not exist: then its nearest existing parent is asked. Leaves nothing.

        Raises:
            DriverUnsupported: it can't, with the reason in one line.
        """

    # -- life ---------------------------------------------------------------------------

    @abstractmethod
    def create(
        self,
        id: LayerId,
        parent: LayerId | None = None,
        *,
        options: Mapping[str, str] = NO_OPTIONS,
    ) -> None:
        """Make a layer that changes nothing, to be filled by :meth:`apply_diff`.

        Raises:
            LayerExists: ``id`` is there already.
            LayerNotFound: ``parent`` is not there; nothing is left.
            OptionUnsupported: a storage option that the driver does not have for a layer.
        """

    @abstractmethod
    def create_read_write(
        self,
        id: LayerId,
        parent: LayerId | None = None,
        *,
        mount_label: str = "",
        options: Mapping[str, str] = NO_OPTIONS,
    ) -> None:
        """Make a layer that changes nothing, to be written through :meth:`get`.

        Options, where the driver has them: ``size`` (bytes, or with K, M, G, T: a limit),
        ``volatile`` (``true``: no syncs, lost with the machine), ``base`` (an absolute path: a
        directory that is no layer, to be shown below; only without ``parent``).

        Raises:
            LayerExists, LayerNotFound, OptionUnsupported: as :meth:`create`.
        """

    @abstractmethod
    def remove(self, id: LayerId, *, pins: bool = False) -> None:
        """End a layer. One that is not there is no error: removal can be repeated.

        A mount that nobody refers to any more is unmounted first. With ``pins`` none of them
        counts as a reference.

        Raises:
            LayerInUse: it has children, or a process refers to its mount.
            OSError: EBUSY when it is still mounted after several tries.
        """

    @abstractmethod
    def exists(self, id: LayerId) -> bool:
        """Whether the layer is there."""

    @abstractmethod
    def ids(self) -> Iterator[LayerId]:
        """The layers of this home, in no order. Costs one directory listing."""

    def strays(self) -> Iterator[LayerId]:
        """What a crash left of layers that are not there; :meth:`remove` takes it away.

        For who alone has the home: a layer that is being made looks the same.
        """
        return iter(())  # most let a layer appear, and go, by one rename

    @abstractmethod
    def parent(self, id: LayerId) -> LayerId | None:
        """The direct parent.

        Raises:
            LayerNotFound: no such layer.
        """

    def verify(self, id: LayerId, *, repair: bool = False) -> list[str]:
        """Compare with what was recorded whatever of a layer :meth:`diff` does not read.

        With ``repair``, what is wrong and can be made again from the rest is deleted, and what
        that was is returned.

        Raises:
            LayerBroken: it is not what it was.
            LayerNotFound: no such layer.
        """
        return []  # most have nothing that diff leaves out

    def elsewhere(self, id: LayerId) -> Path | None:
        """Where someone else keeps the layer's own files; None if they are in the home."""
        return None

    # -- mounts -------------------------------------------------------------------------

    @abstractmethod
    def get(self, id: LayerId, mount_label: str = "") -> Path:
        """Mount the layer's chain, or count one more reference to the mount.

        ``mount_label`` is an SELinux context (:func:`check_mount_label`); "" for none.

        Raises:
            LayerNotFound: no such layer, or one of its chain is gone.
            LayerInUse: mounted by a process in another mount namespace.
            MountError: the kernel refused, with its own words.
        """

    @abstractmethod
    def put(self, id: LayerId) -> None:
        """Give back one reference of this process; the last one of all unmounts.

        Without a reference this only unmounts what a dead process left.

        Raises:
            OSError: the unmount failed (EBUSY: someone has a file open in the mount).
        """

    def prepare(self, id: LayerId) -> None:
        """Make ahead, and keep, what the first :meth:`get` of the layer or of one on it would make.

        Mounts nothing; for those who have time, while something is waited for. A layer is got as
        well without it. Costs what that :meth:`get` is spared, in most drivers nothing.

        Raises as :meth:`get`, also where the disk is full; nothing is left then.
        """
        return  # most make nothing

    @contextmanager
    def mounted(self, id: LayerId, mount_label: str = "") -> Iterator[Path]:
        """:meth:`get` and :meth:`put` around a block."""
        path = self.get(id, mount_label)
        try:
            yield path
        finally:
            self.put(id)

    @abstractmethod
    def pin(self, id: LayerId, mount_label: str = "", *, here: bool = False) -> Path:
        """:meth:`get` with a reference that outlives the process, until :meth:`unpin` or reboot.

        ``here`` says that all who pin this layer share this mount namespace. Then pins of a mount
        that is gone, because someone else unmounted it, count for nothing any more.
        """

    @abstractmethod
    def unpin(self, id: LayerId) -> bool:
        """Give back what :meth:`pin` took. Returns whether there was a pin."""

    def mounts(self, id: LayerId, *, readonly: bool = False) -> list[Mount]:
        """What to mount, one over the other, to see the layer's chain: for one who mounts himself.

        With ``readonly``, and for a layer that has children, the mounts refuse to be written.
        Asking again is no other reference: there is none, and the layer can be removed under
        whoever mounted it. What the driver itself must keep mounted for it stays so, whatever
        becomes of this process, until :meth:`release_mounts` or reboot; it keeps
        the layer from being removed.

        Raises as :meth:`get`.
        """
        return [bind_mount(self.pin(id), readonly=readonly)]

    def release_mounts(self, id: LayerId) -> bool:
        """Unmount what the driver keeps mounted for those who have the layer's :meth:`mounts`.

        Where that would leave someone else's mount behind that must be the only one of the layer,
        nothing is done: ask again when that is gone. Returns whether nothing is kept any more.
        """
        while self.unpin(id):
            pass
        return True

    @abstractmethod
    def cleanup(self, *, pins: bool = False) -> None:
        """Give back all references of this process and unmount what nobody refers to.

        With ``pins`` all pins are given back too, whoever took them.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up what the driver holds in this process; mounts and references stay."""

    # -- what is known ------------------------------------------------------------------

    @abstractmethod
    def status(self) -> list[tuple[str, str]]:
        """Facts about the driver here, for people: names and values."""

    @abstractmethod
    def metadata(self, id: LayerId) -> dict[str, str]:
        """Facts about one layer, for people: where it lies.

        Raises:
            LayerNotFound: no such layer.
        """

    # -- differences --------------------------------------------------------------------
    # ``parent`` is usually the direct parent, and that is what drivers are quick at. Any
    # other layer may be given: then the two mounted trees are compared (drivers.naive). None
    # means against nothing; for a layer whose chain stands on a base directory, against that.

    @abstractmethod
    def diff(
        self, id: LayerId, parent: LayerId | None = None, *, options: PackOptions | None = None
    ) -> BinaryIO:
        """What the layer changes against ``parent``, as an uncompressed OCI layer tar.

        ``parent=None`` gives the whole tree, or what differs from the base directory. The
        stream is made while it is read; close it. Reading raises OSError when a file can't be read.

        Raises:
            LayerNotFound: either is missing.
            UnmappedId: an owner on disk has no place in the driver's id map; while it is read too.
        """

    @abstractmethod
    def apply(
        self,
        id: LayerId,
        parent: LayerId | None,
        stream: BinaryIO,
        *,
        observer: Observer | None = None,
        options: UnpackOptions | None = None,
    ) -> Unpacked:
        """Unpack an uncompressed OCI layer tar into the layer: all of it, or nothing.

        ``observer`` sees every byte of the tar in order, as tar-split wants it; it and what is in
        ``options`` are called in this thread.

        Raises:
            LayerNotFound: no such layer.
            LayerInUse: it is mounted or has children.
            InvalidArchive: the tar is damaged or hostile; the layer is as it was.
            UnmappedId: an owner in it has no place in the driver's id map; the layer is as it was.
            OSError: ENOSPC and the like; the layer is as it was.
        """

    @abstractmethod
    def stage(
        self,
        stream: BinaryIO,
        below: Callable[[], Staged | LayerId | None],
        *,
        observer: Observer | None = None,
        options: UnpackOptions | None = None,
    ) -> AbstractContextManager[Staged]:
        """Unpack an uncompressed OCI layer tar into a place of its own, to be placed later.

        So the layers of an image can be unpacked side by side. ``below`` gives what the layer is
        to stand on, a layer or what was staged itself; it is called as late as can be, perhaps
        never, and may wait until that is complete. What is not placed is deleted after the block.

        Raises as :meth:`apply`, and what ``below`` raises.
        """

    @abstractmethod
    def place(self, id: LayerId, parent: LayerId | None, staged: Staged) -> None:
        """Make what was staged the content of an empty layer on ``parent``, as :meth:`apply` would.

        ``parent`` is the direct one, and has the content that ``below`` told of. Nothing that
        stands on what was staged may still be on its way through :meth:`stage`.

        Raises:
            LayerNotFound, LayerInUse, OSError: as :meth:`apply`.
        """

    def apply_diff(self, id: LayerId, parent: LayerId | None, stream: BinaryIO) -> int:
        """:meth:`apply`; returns the layer's size in bytes, as :meth:`diff_size` counts."""
        return self.apply(id, parent, stream).size

    def copy_in(
        self,
        id: LayerId,
        parent: LayerId | None,
        layer: Foreign,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Fill the layer from a layer directory that someone else keeps; its size in bytes.

        Drivers that keep directories make it by links or copies, others by way of a tar.
        ``progress`` is called with bytes as they come. Raises as :meth:`apply`.
        """
        from lamina.archive.pack import pack
        from lamina.archive.stream import open_chunks

        with open_chunks(pack([layer.directory], fmt=layer.view, idmap=layer.idmap)) as tar:
            size = self.apply_diff(id, parent, tar)
        if progress is not None:
            progress(size)
        return size

    @abstractmethod
    def changes(self, id: LayerId, parent: LayerId | None = None) -> list[Change]:
        """What the layer changes against ``parent``, sorted by path, as ``docker diff``.

        Raises:
            LayerNotFound: either is missing.
        """

    @abstractmethod
    def diff_size(self, id: LayerId, parent: LayerId | None = None) -> int:
        """Bytes of the regular files that the layer changes against ``parent``.

        A hard-linked file counts once; directories, whiteouts and holes do not (apparent
        size, not blocks).
        """

    def usage(self, id: LayerId) -> DiskUsage:
        """What the layer itself takes on disk now. It may be written and removed meanwhile.

        Raises:
            LayerNotFound: no such layer.
        """
        parent = self.parent(id)
        return DiskUsage(self.diff_size(id, parent), len(self.changes(id, parent)))

    def overhead(self, id: LayerId) -> int:
        """Bytes of what is kept for a layer beside its files, and made again if it is gone.

        0 for a layer that is not there.
        """
        return 0

    def contents(self, id: LayerId) -> Iterator[Content]:
        """Where the contents of the layer's own regular files lie, each file once.

        Left out is what is empty or in several pieces. Raises LayerNotFound.
        """
        return iter(())

    @abstractmethod
    def diff_getter(self, id: LayerId) -> FileGetter:
        """Access to the files that the layer itself holds.

        Raises:
            LayerNotFound: no such layer.
        """
