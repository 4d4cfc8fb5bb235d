"""The store: what users of the Python API begin with."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Self

from lamina.errors import InvalidName
from lamina.store.container import Container
from lamina.store.containers import Containers, Plan
from lamina.store.core import Core
from lamina.store.images import Image, Images
from lamina.store.layers import Layers
from lamina.store.packing import pack_options
from lamina.store.policy import SyncPolicy
from lamina.store.roots import default_root, default_run
from lamina.store.sweep import sweep
from lamina.store.work import Work

if TYPE_CHECKING:
    from lamina.drivers import Driver
    from lamina.oci import RunConfig
    from lamina.oci.registry import Options as RegistryOptions
    from lamina.progress import ProgressCallback
    from lamina.store.adopt import Adoption, DockerSource, Way
    from lamina.store.checking import Problem
    from lamina.store.converting import Conversion
    from lamina.store.pruning import Pruned
    from lamina.store.running import Runner
    from lamina.store.sharing import Deduplicated, Sharing
    from lamina.store.transfer.making import Packing
    from lamina.store.transfer.moving import AnySource, AnyTarget, Form
    from lamina.store.transfer.saving import Saved
    from lamina.store.usage import Usage


class Store:
    """Layers, images and containers below one directory.

        ROOT/lamina.db             layers, images, names, containers (lamina.store.schema)
        ROOT/blobs/sha256/HEX      image configurations
        ROOT/tar-split/LAYER/      what it takes to give tars back byte for byte
        ROOT/DRIVER/               the driver's own
        ROOT/staging/              half-made things (lamina.store.leases)
        RUN/containers/ID          locks of containers in use (lamina.store.locks)
        RUN/DRIVER/                references to mounts

    Any number of processes and threads may have it open. Opening costs the same however much
    it holds; what dead processes left is cleared up then (lamina.store.sweep).

    Args:
        root: by default ``/var/lib/lamina``, or ``$XDG_DATA_HOME/lamina`` for a user.
        run: a directory that is empty after a reboot; by default below ``/run/lamina`` or
            ``$XDG_RUNTIME_DIR/lamina``. All who open one root must use the same.
        driver: by default the one that the store was begun with, else the best that works.
        options: storage options of the driver.
        sync: what survives a power cut.
        progress: called during long work, unless that is given a callback of its own.

    Raises:
        PermissionRequired: the directories belong to someone else.
        StoreError: the store is damaged, lost its database, or was written by a newer Lamina.
        InvalidName, OptionUnsupported: no such driver, or it has no such option.
        DriverUnsupported: when the driver is first used; OptionUnsupported of the store's own.
    """

    _runner: ClassVar[Runner | None] = None

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        run: str | os.PathLike[str] | None = None,
        driver: str | None = None,
        options: Mapping[str, str] | None = None,
        sync: SyncPolicy = SyncPolicy.LAYER,
        progress: ProgressCallback | None = None,
    ) -> None:
        where = Path(os.path.realpath(root)) if root is not None else default_root()
        self._core = Core(
            where,
            Path(os.path.realpath(run)) if run is not None else default_run(where),
            driver=driver,
            options=options or {},
            sync=sync,
            progress=progress,
            runner=self._runner,
        )
        self._close = weakref.finalize(self, self._core.close)
        self.layers = Layers(self._core)
        self.images = Images(self._core)
        self.containers = Containers(self._core)
        try:
            self._core.remember_driver()
            sweep(self._core)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmount what is mounted through this object, and close the database.

        Happens by itself when the object is no longer referred to.
        """
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def root(self) -> Path:
        """Where everything lasting is."""
        return self._core.root

    @property
    def driver_because(self) -> str:
        """Why new layers are made by :attr:`driver`, for a person."""
        return self._core.driver_because

    @property
    def run(self) -> Path:
        """Where locks and mount references are."""
        return self._core.run

    @property
    def driver(self) -> Driver:
        """The driver for new layers."""
        return self._core.driver

    # -- images -------------------------------------------------------------------------

    def import_tar(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        name: str | None = None,
        *,
        config: RunConfig | None = None,
        progress: ProgressCallback | None = None,
    ) -> Image:
        """An image of one layer from the tar of a root file system.

        ``source`` is a path or a readable stream; gzip, zstd, bzip2 and xz are told by their
        magic. ``config`` is how containers of the image are run.

        Raises:
            InvalidArchive: it is damaged or hostile, or it is an image (``docker save``) rather
                than a file system. Nothing is left of it.
            InvalidName: ``name`` is not an image name.
            OSError: the disk is full, or the like. Nothing is left.
        """
        from lamina.store import committing

        what = "importing the stream"
        if isinstance(source, str | os.PathLike):
            what = f"importing {Path(source).name}"
        return committing.import_tar(
            self._core,
            source,
            name,
            what=what,
            config=config,
            progress=progress or self._core.progress,
        )

    def import_directory(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        config: RunConfig | None = None,
        progress: ProgressCallback | None = None,
    ) -> Image:
        """An image of one layer with what is below a directory now.

        Raises as :meth:`import_tar`.
        """
        from lamina.archive.pack import pack_tree
        from lamina.archive.stream import open_chunks
        from lamina.oci.epoch import source_date_epoch
        from lamina.store import committing

        directory = Path(path)
        if not directory.is_dir():
            raise InvalidName(f"not a directory: {directory}")
        options = pack_options(clamp_mtime=source_date_epoch())
        with open_chunks(pack_tree(directory, options=options)) as tar:
            return committing.import_tar(
                self._core,
                tar,
                name,
                what=f"importing {directory.resolve().name or directory}",
                config=config,
                progress=progress or self._core.progress,
                root_fs=False,
            )

    def load(
        self,
        source: AnySource,
        wanted: Sequence[str] = (),
        *,
        name: str | None = None,
        platform: str | None = None,
        keep_blobs: bool = False,
        loaded: Callable[[Image, Sequence[str]], None] | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[Image]:
        """The images of a layout or archive, or those called ``wanted`` in it.

        ``source`` is the path of an image layout, or a path or readable stream of what ``docker
        save``, ``podman save``, ``skopeo copy`` or ``ctr export`` writes, compressed or not; or
        any :class:`lamina.oci.content.Source`.

        They get the names that they have there, or, if it is one image, ``name`` alone; what is
        ``wanted`` by a digest, or by a tag that only its layout knows, has none. Of an image for
        several platforms the one for ``platform`` (``linux/arm64``; by default this machine's) is
        taken. ``keep_blobs`` keeps the layers' blobs too, so that the image goes out again with
        the same digests; they take room beside the layers. ``loaded`` is called
        with each image that is there now, and the names it got. What the first container on an
        image would have to make (:meth:`Driver.prepare`) is made too.

        Raises:
            InvalidImage, InvalidArchive, DigestMismatch: something is not what it should be.
            BlobNotFound, PlatformNotFound, ImageNotFound: something is not there.
            OSError: it can't be read, or the disk is full. Of the image that failed nothing is
                left; those before it are there.
        """
        from lamina.oci.platform import parse
        from lamina.store.transfer import moving

        return moving.load(
            self._core,
            source,
            wanted,
            name,
            platform=parse(platform) if platform else None,
            keep_blobs=keep_blobs,
            loaded=loaded,
            progress=progress or self._core.progress,
        )

    def pull(
        self,
        ref: str,
        *,
        platform: str | None = None,
        keep_blobs: bool = False,
        options: RegistryOptions | None = None,
        progress: ProgressCallback | None = None,
    ) -> Image:
        """An image from a registry: ``debian:12``, ``host:port/repository@sha256:...``.

        It gets the name it is pulled by; one pulled by a digest alone has none. An image that did
        not change is not fetched again, nor is a layer that the store has. What an interrupted
        pull has fetched is there for the next one. ``platform`` and ``keep_blobs`` are as in
        :meth:`load`; ``options`` is how the registry is spoken with.

        Raises:
            RegistryError, Unauthorized: the registry can't be reached, or refuses.
            ImageNotFound, PlatformNotFound, BlobNotFound: it does not have it.
            InvalidImage, InvalidArchive, DigestMismatch: it is not what it should be.
            OSError: the disk is full, or the like. Nothing of the image is in the store then.
        """
        from lamina.oci.platform import parse
        from lamina.store.transfer import registries

        return registries.pull(
            self._core,
            ref,
            platform=parse(platform) if platform else None,
            keep_blobs=keep_blobs,
            options=options,
            progress=progress or self._core.progress,
        )

    def push(
        self,
        ref: str,
        target: str | None = None,
        *,
        packing: Packing | None = None,
        options: RegistryOptions | None = None,
        progress: ProgressCallback | None = None,
    ) -> Saved:
        """Send an image to a registry, as ``target`` or else by the name ``ref``.

        Blobs that the registry has are not sent. A layer goes as the blob that it came as where
        that is there or was kept; else it is made anew, and the result says that it changed.

        Raises:
            ImageNotFound, AmbiguousName: no such image, or several.
            RegistryError, Unauthorized: the registry can't be reached, or refuses.
            LayerBroken, DigestMismatch: a layer is not what it was.
        """
        from lamina.store.transfer import registries
        from lamina.store.transfer.making import Packing

        return registries.push(
            self._core,
            self.image(ref),
            target or ref,
            packing or Packing(),
            options=options,
            progress=progress or self._core.progress,
        )

    def save(
        self,
        images: Sequence[str],
        target: AnyTarget,
        *,
        format: Form = "docker-archive",
        packing: Packing | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[Saved]:
        """Write images to a layout or an archive.

        ``target`` is a path, which an archive takes the place of when it is complete, a writable
        stream, or any :class:`lamina.oci.content.Target`, which the caller closes. ``format`` is
        ``docker-archive`` (every ``docker load`` reads it; layers are not compressed),
        ``oci-archive``, or ``oci``, a layout in a directory, to which images are added.

        An image gets the name that it is given by here, one given by its id gets all its names.

        Raises:
            ImageNotFound, AmbiguousName: no such image, or several.
            LayerBroken, DigestMismatch: a layer is not what it was.
            InvalidImage: ``packing`` is not possible in this format.
            OSError: the target can't be written. Nothing is left of a file.
        """
        from lamina.store.transfer import moving

        chosen = [(image := self.image(ref), self.images.names_for(image, ref)) for ref in images]
        progress = progress or self._core.progress
        return moving.save(self._core, chosen, target, format, packing, progress)

    def image(self, ref: str) -> Image:
        """The image of a name, an id, or the beginning of one.

        Raises:
            ImageNotFound, AmbiguousName: none, or several.
        """
        return self.images.get(ref)

    def remove_image(self, ref: str, *, force: bool = False) -> list[str]:
        """Remove a name, and the image with its last one. See :meth:`Images.remove`."""
        return self.images.remove(ref, force=force)

    def squash(
        self, image: Image, first: int = 0, last: int = -1, name: str | None = None
    ) -> Image:
        """An image like ``image``, its layers ``first`` to ``last`` made one.

        Layers count from 0 at the bottom, from -1 at the top; both ends are included.

        Raises:
            InvalidName: there are no such layers, or ``name`` is not an image name.
        """
        from lamina.store import committing

        count = len(image.diff_ids)
        first, last = (place + count if place < 0 else place for place in (first, last))
        return committing.squash(self._core, image, first, last, name)

    def configure(
        self,
        image: Image,
        name: str | None = None,
        *,
        config: RunConfig | None = None,
        author: str | None = None,
        message: str = "",
        created_by: str = "",
        keep_history: bool = True,
    ) -> Image:
        """An image of the same layers as ``image`` that is run as ``config`` says.

        Its history gets a step without a layer, ``created_by`` with ``message``. ``author`` None
        leaves the author, an empty one is none. Without ``keep_history`` what was before is
        forgotten. It is made now, or when ``SOURCE_DATE_EPOCH`` says.

        Raises:
            InvalidName: ``name`` is not an image name.
            LayerNotFound: the image was removed meanwhile.
        """
        from lamina.store import configuring

        return configuring.configure(
            self._core,
            image,
            name,
            config=config,
            author=author,
            step=(created_by or None, message or None),
            keep_history=keep_history,
        )

    def work(self) -> Work:
        """A context in which layers can be registered before an image refers to them."""
        return Work(self._core)

    # -- containers ---------------------------------------------------------------------

    def container(
        self,
        base: Image | str | os.PathLike[str],
        *,
        name: str | None = None,
        keep: bool = False,
        volatile: bool = False,
        size: str | int | None = None,
        labels: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
    ) -> Container:
        """Make a container over an image (or the name of one), or over a directory (a ``Path``).

        ``Path("/")`` is the machine itself. Use it in a ``with`` block: it is mounted inside,
        and removed at the end unless it is to be kept; one that is not kept never outlives the
        process. ``volatile`` saves syncs where the driver can, for what need not survive a power
        cut; ``size`` limits what can be written (bytes, or "2G").

        Raises:
            ImageNotFound, AmbiguousName: no such image, or several.
            NameInUse, InvalidName: about ``name``.
            OptionUnsupported: the driver or file system has no such limit.
        """
        spared = volatile and "volatile" in self.driver.layer_options
        options = {"volatile": "true"} if spared else {}
        if size is not None:
            options["size"] = str(size)
        plan = Plan(name, keep, options, dict(labels or {}), tuple(command))
        if isinstance(base, str):
            base = self.image(base)
        return self.containers.create(base if isinstance(base, Image) else Path(base), plan)

    def open(self, ref: str) -> Container:
        """The container of a name, an id, or the beginning of one.

        Raises:
            ContainerNotFound, AmbiguousName: none, or several.
        """
        return self.containers.get(ref)

    # -- what others left ---------------------------------------------------------------

    def adopt(
        self,
        source: DockerSource,
        names: Sequence[str] = (),
        *,
        way: Way | None = None,
        verify: bool = True,
    ) -> Adoption:
        """Plan to bring images and containers of a Docker root with AUFS layers into this store.

        Nothing is done before :meth:`Adoption.run`; raises as :class:`Adoption`. ``names`` are
        those of images and containers, or ids; by default it is everything. ``way`` is by hard
        links where the file system has them, unless it says otherwise.
        """
        from lamina.store.adopt import Adoption, Way

        return Adoption(self._core, source, names, way=way or Way.LINK, verify=verify)

    # -- between drivers ----------------------------------------------------------------

    def convert(self, driver: str, images: Sequence[str] = (), *, keep: bool = False) -> Conversion:
        """Plan to move the layers of images, by default of all, to another driver.

        Nothing is done before :meth:`Conversion.run`; raises as :class:`Conversion`. DiffIDs and
        ChainIDs stay what they are. The old driver's copy goes, unless it is to be ``keep``-ed or
        containers stand on it. Once ``driver`` has all images the store is opened with it.
        """
        from lamina.store.converting import Conversion

        return Conversion(self._core, driver, images, keep=keep)

    # -- the whole ----------------------------------------------------------------------

    def usage(self) -> Usage:
        """Bytes of images, containers and the whole. Measures writable layers only."""
        from lamina.store.usage import usage

        return usage(self._core)

    def sharing(self, *, progress: ProgressCallback | None = None) -> Sharing:
        """Equal files in several layers. Reads every file that is as long as another one."""
        from lamina.store import sharing

        return sharing.sharing(self._core, progress or self._core.progress)

    def dedup(self, *, progress: ProgressCallback | None = None) -> Deduplicated:
        """Let equal files in layers of images share blocks of the disk, by reflinks.

        What is in the layers stays the same; the kernel compares. Reads as :meth:`sharing`. Raises
        :class:`StoreError` where the file system can't: it takes xfs or btrfs.
        """
        from lamina.store import sharing

        return sharing.dedup(self._core, progress or self._core.progress)

    def prune(self, *, containers: bool = False, unused: bool = False) -> Pruned:
        """Remove images without a name, layers that belong to nothing, and interrupted downloads.

        With ``containers`` also kept containers that nobody uses, first; with ``unused`` also
        images that have names but no container.
        """
        from lamina.store import pruning

        return pruning.prune(self._core, containers=containers, unused=unused)

    def check(
        self,
        *,
        repair: bool = False,
        contents: bool = False,
        progress: ProgressCallback | None = None,
    ) -> list[Problem]:
        """Compare what the store says with what lies on disk; returns what is wrong.

        ``repair`` removes what belongs to nothing, and what is wrong and made again when needed.
        ``contents`` also reads all files of all layers, and verifies that each gives back the tar
        that it was made of.
        """
        from lamina.store import checking

        return checking.check(
            self._core,
            repair=repair,
            contents=contents,
            progress=progress or self._core.progress,
        )
