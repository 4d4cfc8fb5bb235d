"""The driver contract over tars with indexes (see the package)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from lamina.drivers.base import (
    NO_OPTIONS,
    Content,
    DiskUsage,
    FileGetter,
    Mount,
    Staged,
    nearest_existing,
)
from lamina.drivers.directory import DirectoryDriver, StagedDirectory
from lamina.drivers.erofs.listings import Listings
from lamina.drivers.erofs.ownermap import UNMAPPED, OwnerMap
from lamina.drivers.erofs.tarlayer import Chain as TarChain
from lamina.drivers.erofs.tarlayer import TarLayer, merged_view
from lamina.drivers.layout import Chain
from lamina.drivers.overlay import OverlayDriver
from lamina.drivers.overlaymount import Overlay
from lamina.errors import DriverUnsupported, LayerNotFound, LayerUnsupported, MountError
from lamina.kernel import erofs, filesystems
from lamina.kernel.idmap import IdMap
from lamina.kernel.mount import bind, move_mount, umount2
from lamina.kernel.mountinfo import is_mountpoint
from lamina.kernel.remove import remove_tree
from lamina.kernel.rename import exchange
from lamina.log import Log
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.archive.changes import Change
    from lamina.archive.pack import PackOptions
    from lamina.archive.tar import Observer
    from lamina.archive.unpack import Unpacked, UnpackOptions

log = Log(__name__)


_TOO_MUCH = (LayerUnsupported, MountError)
"""What says that some layers can't be mounted as one; whatever else is wrong with one of them shows
again when they are mounted one by one."""


_FEW = 8
"""Layers that a container has as lowers of their own rather than as part of one. A mount of each is
a tenth of a millisecond; an index for all of an image of 12,000 entries, 200."""


class StagedTar(NamedTuple):
    """A layer in the staging place; see :class:`lamina.drivers.base.Staged`."""

    layer: TarLayer
    unpacked: Unpacked
    below: Callable[[], list[TarLayer]]
    """The layers it was made for, nearest first; waits for them."""


class _OnDirectory(Exception):
    """The layer stands on one that is no tar."""


class ErofsDriver(OverlayDriver):
    """Layers as tars with an index. See the package and :class:`lamina.drivers.Driver`."""

    name = "erofs"
    keeps_tars = True

    def __init__(
        self,
        home: Path,
        run: Path,
        *,
        options: Mapping[str, str] = NO_OPTIONS,
        idmap: IdMap = IdMap(),
    ) -> None:
        super().__init__(home, run, options=options, idmap=idmap)
        self._owners = OwnerMap(idmap)
        self._listings = Listings()

    def close(self) -> None:
        """See :meth:`Driver.close`."""
        super().close()
        self._owners.close()

    @classmethod
    def probe(cls, home: Path, *, idmap: IdMap = IdMap()) -> None:
        """See :meth:`Driver.probe`. Mounts an index, and an overlay on it, for a moment."""
        if not filesystems.supported("erofs"):
            raise DriverUnsupported(cls.name, "the kernel has no EROFS")
        super().probe(home, idmap=idmap)
        place = nearest_existing(home)
        try:
            _try_mount(place)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise DriverUnsupported(
                    cls.name, "mounting EROFS needs root (outside of user namespaces)"
                ) from error
            backing = filesystems.name(filesystems.magic(place))
            raise DriverUnsupported(cls.name, f"not on {backing} at {place}: {error}") from error
        if idmap:
            owners = OwnerMap(idmap)
            try:
                _try_mount(place, owners)
            except OSError as error:
                why = f"its mounts can't have other owners here: {error}"
                raise DriverUnsupported(cls.name, why) from error
            finally:
                owners.close()

    # -- life ---------------------------------------------------------------------------

    def _top_below(self, chain: Chain) -> tuple[int, int, int]:
        layer = self._tar_layer(chain.layers[0]) if chain.layers else None
        if layer is None or not layer.is_complete:
            return super()._top_below(chain)
        head = erofs.read_head(layer.index)  # a mount for this would cost what a container's does
        return head.mode & 0o7777, *self.idmap.to_host(head.uid, head.gid)

    # -- mounts -------------------------------------------------------------------------

    @contextmanager
    def _trees(self, chain: Chain, *, bottom: bool = True) -> Iterator[list[str]]:
        """The directories to stack, mounted for the block: one a layer, but for the tars at the
        bottom as few as :meth:`_merged` makes of them."""
        layers = [self._listed(id) for id in chain.layers]
        tars = self._tars_at_bottom(layers) if bottom and chain.base is None else []
        with ExitStack() as stack:
            trees = []
            for layer in layers[: len(layers) - len(tars)]:
                directory = f"{layer.path}/diff"
                trees.append(
                    stack.enter_context(layer.mounted()) if layer.is_complete else directory
                )
            above, merged = self._merged(tars)
            trees += [stack.enter_context(layer.mounted()) for layer in above]
            if merged:
                try:
                    whole = TarChain(merged).mounted(self.layout.staging.directory)
                    trees.append(stack.enter_context(whole))
                except _TOO_MUCH as error:
                    log.debug("layers mounted one by one: %s", error)
                    trees += [stack.enter_context(layer.mounted()) for layer in merged]
            yield trees + ([] if chain.base is None else [str(chain.base)])

    @staticmethod
    def _merged(tars: list[TarLayer]) -> tuple[list[TarLayer], list[TarLayer]]:
        """What of a chain of tars is to be mounted one by one, and what below as one.

        A few layers above a chain that has its index, or above the lowest, get none of their own:
        where an image is made step by step each would cost time and disk for all its entries.
        """
        ready = (number for number, layer in enumerate(tars) if layer.is_merged)
        above = next(ready, len(tars) - 1)
        return (tars[:above], tars[above:]) if 0 <= above <= _FEW else ([], tars)

    @staticmethod
    def _tars_at_bottom(layers: list[TarLayer]) -> list[TarLayer]:
        """The tars at the end of a list."""
        first = len(layers)
        while first and layers[first - 1].is_complete:
            first -= 1
        return layers[first:]

    def _tar_layer(self, id: LayerId) -> TarLayer:
        return self._tar_layer_at(self.layout.path(id, "").rstrip("/"))

    def _tar_layer_at(self, path: str) -> TarLayer:
        return TarLayer(path, self._owners)

    def _listed(self, id: LayerId) -> TarLayer:
        """The layer with what it has now, to be looked at and mounted. Raises OSError."""
        path = self.layout.path(id, "").rstrip("/")
        return TarLayer(path, self._owners, self._listings.of(path))

    def _mount(self, id: LayerId, mount_label: str) -> Path:
        layer = self._tar_layer(id)
        if not self._is_fixed(layer):
            return super()._mount(id, mount_label)
        merged = self._mountpoint(id)
        if is_mountpoint(merged):
            return Path(merged)
        chain = self.layout.chain(id)
        try:
            tars = self._tars_at_bottom([self._listed(each) for each in (id, *chain.layers)])
        except FileNotFoundError:
            self._check_chain(id, chain)  # which says more
            raise
        if chain.base is not None:
            self._check_chain(id, chain)
        os.makedirs(merged, mode=0o700, exist_ok=True)
        only_tars = len(tars) > len(chain.layers) and chain.base is None
        if not only_tars or not self._mount_chain(tars, merged, mount_label):
            whole = Chain((id, *chain.layers), chain.base)
            with self._trees(whole, bottom=not only_tars) as trees:
                if len(trees) == 1:  # overlayfs wants two
                    bind(trees[0], merged, read_only=True)
                else:
                    Overlay(trees, label=mount_label).mount(merged)
        return Path(merged)

    @staticmethod
    def _is_fixed(layer: TarLayer) -> bool:
        """Whether the layer can't be written: it has a tar, which :meth:`diff` gives back."""
        return layer.is_complete or layer.has_tar

    def _mount_chain(self, tars: list[TarLayer], target: str, label: str) -> bool:
        """Mount a chain of tars as one; False where that is more than the format, the kernel or
        the disk takes.

        One layer is never too much.
        """
        try:
            fd = TarChain(tars).open_mount(self.layout.staging.directory, label)
        except _TOO_MUCH as error:
            if len(tars) == 1:
                raise
            log.debug("layers mounted one by one: %s", error)
            return False
        try:
            move_mount(fd, target)
        finally:
            os.close(fd)
        return True

    def prepare(self, id: LayerId) -> None:
        """See :meth:`Driver.prepare`: the merged index."""
        release = self._hold(id)  # what is made is put into its directory
        try:
            chain = self.layout.chain(id)
            tars = self._tars_at_bottom([self._tar_layer(each) for each in (id, *chain.layers)])
            if tars and chain.base is None:
                TarChain(tars).prepare(self.layout.staging.directory)
        finally:
            release()

    def mounts(self, id: LayerId, *, readonly: bool = False) -> list[Mount]:
        """See :meth:`Driver.mounts`: a bind of the driver's own mount where EROFS is below it."""
        chain = self.layout.chain(id)
        if any(self._tar_layer(each).is_complete for each in (id, *chain.layers)):
            return DirectoryDriver.mounts(self, id, readonly=readonly)
        return super().mounts(id, readonly=readonly or self._is_fixed(self._tar_layer(id)))

    def release_mounts(self, id: LayerId) -> bool:
        """See :meth:`Driver.release_mounts`."""
        return DirectoryDriver.release_mounts(self, id)

    # -- what is known ------------------------------------------------------------------

    def verify(self, id: LayerId, *, repair: bool = False) -> list[str]:
        """See :meth:`Driver.verify`: the indexes, and fs-verity where there is any."""
        layer = self._tar_layer(id)
        if not layer.is_complete:
            return []
        with self._there(id), self.layout.staging.directory() as staging:
            layer.verify()
            chain = self.layout.chain(id)
            tars = self._tars_at_bottom([self._tar_layer(each) for each in (id, *chain.layers)])
            return TarChain(tars).verify(staging, repair=repair) if len(tars) > 1 else []

    def metadata(self, id: LayerId) -> dict[str, str]:
        """See :meth:`Driver.metadata`."""
        layer = self._tar_layer(id)
        if not layer.is_complete:
            return super().metadata(id)
        self.layout.chain(id)
        return {"Tar": layer.tar, "Index": layer.index, "MergedDir": self._mountpoint(id)}

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
        chain = self.layout.chain(id)
        fixed = self._is_fixed(self._tar_layer(id))  # what is for another parent can't be written
        if chain.base is not None or (parent != chain.parent and not fixed):
            return super().apply(id, parent, stream, observer=observer, options=options)
        with self._there(id):
            below = id if fixed or self._is_filled(self._tar_layer(id)) else parent
        with self.stage(stream, lambda: below, observer=observer, options=options) as staged:
            self.place(id, chain.parent, staged)
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
        with ExitStack() as stack:
            layer = self._tar_layer_at(stack.enter_context(self.layout.staging.directory()))

            @cache  # each is asked by the one above it
            def layers() -> list[TarLayer]:
                return self._tars_below(below())

            try:
                with ExitStack() as views:  # of all layers below: many descriptors, much memory
                    unpacked = layer.write_tar(
                        stream,
                        lambda: views.enter_context(merged_view(layers())),
                        observer,
                        options.progress if options else None,
                    )
            except (LayerUnsupported, _OnDirectory) as error:
                log.debug("unpacked beside its tar: %s", error)
                yield stack.enter_context(self._stage_directory(layer, below, options))
                return
            yield StagedTar(layer, unpacked, layers)

    @contextmanager
    def _stage_directory(
        self,
        layer: TarLayer,
        below: Callable[[], Staged | LayerId | None],
        options: UnpackOptions | None,
    ) -> Iterator[Staged]:
        with open(layer.tar, "rb") as tar, super().stage(tar, below, options=options) as staged:
            assert isinstance(staged, StagedDirectory)
            os.rename(layer.tar, f"{staged.directory}/tar")
            yield staged

    def _tars_below(self, below: Staged | LayerId | None) -> list[TarLayer]:
        """The layers of a chain, nearest first; raises if one of them is no tar."""
        if below is None:
            return []
        if isinstance(below, StagedTar):
            return [below.layer, *below.below()]
        if not isinstance(below, str):
            raise _OnDirectory
        chain = self.layout.chain_of_child(below)
        layers = [self._tar_layer(id) for id in chain.layers]
        if chain.base is not None or not all(layer.is_complete for layer in layers):
            raise _OnDirectory
        return layers

    def _lowers_on(self, below: Staged | LayerId | None, held: ExitStack) -> list[Path]:
        """See :class:`DirectoryDriver`; for a layer that is to be a directory."""
        if isinstance(below, StagedTar):
            layers = [below.layer, *below.below()]
            return [Path(held.enter_context(layer.mounted())) for layer in layers]
        if isinstance(below, StagedDirectory):
            return super()._lowers_on(below, held)
        chain = Chain() if below is None else self.layout.chain_of_child(LayerId(str(below)))
        return [Path(path) for path in held.enter_context(self._trees(chain))]

    def place(self, id: LayerId, parent: LayerId | None, staged: Staged) -> None:
        """See :meth:`Driver.place`."""
        if not isinstance(staged, StagedTar):
            super().place(id, parent, staged)
            return
        chain = self.layout.chain(id)
        if parent != chain.parent:
            raise LayerNotFound(id)  # it stands on another one
        with self._there(id):
            self._let_appear(staged.layer.path, id, chain)

    def _settle(self, staged: str, id: LayerId) -> None:
        """Make what is staged the layer's content: a tar, or a directory and perhaps its tar."""
        new, layer = self._tar_layer_at(staged), self._tar_layer(id)
        diff = self.layout.path(id, "diff")
        if self._is_filled(layer):
            self._settle_both(new, layer, id)
        elif new.is_complete:
            new.move_to(layer)
            os.rmdir(diff)
        else:
            layer.remove()  # what a crash left of a tar
            os.rename(f"{staged}/diff", diff)
            if os.path.exists(new.tar):
                os.rename(new.tar, layer.tar)

    @staticmethod
    def _is_filled(layer: TarLayer) -> bool:
        return layer.is_complete or bool(os.listdir(f"{layer.path}/diff"))

    def _settle_both(self, new: TarLayer, layer: TarLayer, id: LayerId) -> None:
        """Put what is staged upon what the layer has: a directory comes of it."""
        diff, both = self.layout.path(id, "diff"), f"{new.path}/both"
        with ExitStack() as stack:
            trees = [
                stack.enter_context(each.mounted()) if each.is_complete else f"{each.path}/diff"
                for each in (new, layer)
            ]
            self._squash(trees, id, both)
        if os.path.isdir(diff):
            layer.remove()  # its tar, which says another thing than both
            exchange(both, diff)
        else:
            os.rename(both, diff)
            layer.remove()

    def diff(
        self, id: LayerId, parent: LayerId | None = None, *, options: PackOptions | None = None
    ) -> BinaryIO:
        """See :meth:`Driver.diff`. Against the direct parent it is the tar, if there is one."""
        chain = self.layout.chain(id)
        if parent == chain.parent and chain.base is None:
            try:
                return open(self._tar_layer(id).tar, "rb")
            except FileNotFoundError:
                pass
        return super().diff(id, parent, options=options)

    def changes(self, id: LayerId, parent: LayerId | None = None) -> list[Change]:
        """See :meth:`Driver.changes`. Takes no mount for one tar, or directories, on tars alone."""
        from lamina.archive import stack
        from lamina.archive.changes import changes_of
        from lamina.archive.erofs import comparing

        split = self._split(id, parent)
        if split is None or split[1].base is not None:
            return super().changes(id, parent)
        layers, lowers = ([self._tar_layer(each) for each in chain.layers] for chain in split)
        tars = [layer for layer in layers if layer.is_complete]
        one_kind = layers and (not tars or len(layers) == 1)
        if not one_kind or not all(layer.is_complete for layer in lowers):
            return super().changes(id, parent)
        with self._there(id), ExitStack() as held:
            nodes: Iterator[stack.Node]
            if tars:
                nodes = comparing.walk(tars[0].read_index())
            else:
                trees = [f"{layer.path}/diff" for layer in layers]
                nodes = held.enter_context(closing(stack.walk(trees, self._format())))
            tree = comparing.Lookup(TarChain(lowers).read_indexes())
            return changes_of(nodes, tree, self._format())

    def diff_size(self, id: LayerId, parent: LayerId | None = None) -> int:
        """See :meth:`Driver.diff_size`."""
        layer = self._tar_layer(id)
        if layer.is_complete and parent == self.layout.chain(id).parent:
            size: int = layer.facts()["size"]
            return size
        return super().diff_size(id, parent)

    def contents(self, id: LayerId) -> Iterator[Content]:
        """See :meth:`Driver.contents`: parts of the tar, and the whole of it."""
        layer = self._tar_layer(id)
        if not layer.is_complete:
            yield from super().contents(id)
            return
        with self._there(id):
            yield from layer.contents()

    def usage(self, id: LayerId) -> DiskUsage:
        """See :meth:`Driver.usage`."""
        layer = self._tar_layer(id)
        if not layer.is_complete:
            return super().usage(id)
        with self._there(id):
            files = [*map(os.stat, layer.devices), *layer.indexes()]
        return DiskUsage(sum(file.st_blocks for file in files) * 512, len(files))

    def overhead(self, id: LayerId) -> int:
        """See :meth:`Driver.overhead`: its index, and that of its chain."""
        return sum(file.st_size for file in self._tar_layer(id).indexes())

    def diff_getter(self, id: LayerId) -> FileGetter:
        """See :meth:`Driver.diff_getter`. Takes no mount."""
        from lamina.drivers.erofs.getter import ImageGetter

        layer = self._tar_layer(id)
        if not layer.is_complete:
            return super().diff_getter(id)
        with ExitStack() as stack:
            stack.callback(self._hold(id))
            image = stack.enter_context(layer.image())
            return ImageGetter(image, stack.pop_all().close)


def _try_mount(place: Path, owners: OwnerMap = UNMAPPED) -> None:
    """Mount a small index, and an overlay on it, in a new directory; leave nothing.

    Raises OSError, also where the ids in an ACL come out of the overlay unmapped.
    """
    import io
    import tempfile

    from lamina.archive import acl
    from lamina.archive.erofs.below import Nothing
    from lamina.archive.tar import Entry, TarWriter

    acl_name = acl.RECORDS["SCHILY.acl.access"]
    other = next((each.container for each in owners.idmap.uids if each.container != each.host), -1)
    xattrs = {}
    if other >= 0:
        xattrs[acl_name] = acl.parse(f"u::rw-,u:{other}:r--,g::r--,m::r--,o::r--")
    top = tempfile.mkdtemp(prefix=".lamina-probe-", dir=place)
    try:
        tar = io.BytesIO()
        writer = TarWriter(tar)
        writer.add(Entry(b"file", mode=0o644, size=5, xattrs=xattrs), iter([b"hello"]))
        writer.close()
        layer = TarLayer(top, owners)
        layer.write_tar(io.BytesIO(tar.getvalue()), Nothing)
        for part in ("upper", "work", "merged"):
            os.mkdir(f"{top}/{part}")
        with layer.mounted() as tree:
            Overlay([tree], f"{top}/upper", f"{top}/work").mount(f"{top}/merged")
        try:
            # In Linux 6.1 an overlay on such mounts does without ACLs, and shows them as they are.
            if other >= 0 and _attribute(f"{top}/merged/file", acl_name) == xattrs[acl_name]:
                raise OSError(errno.EOPNOTSUPP, "overlayfs does not map the ids in ACLs")
        finally:
            umount2(f"{top}/merged")
    finally:
        remove_tree(top)


def _attribute(path: str, name: str) -> bytes:
    """An extended attribute; b"" where the kernel has no such."""
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return b""
        raise
