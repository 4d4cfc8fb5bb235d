"""A container: a writable layer over an image, a directory or the machine itself."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from lamina.errors import CommandNotFound, ContainerRunning, LaminaError, LayerNotFound
from lamina.oci.defaults import Defaults
from lamina.store import branches
from lamina.store.core import Core
from lamina.store.images import Image
from lamina.store.locks import OWNER, RUNNING, USE, LockFile, taken
from lamina.store.names import new_id
from lamina.store.packing import Xattrs, pack_options
from lamina.store.records import Record, boot_id, fetch
from lamina.store.removal import discard, release
from lamina.types import LayerId

if TYPE_CHECKING:
    import subprocess

    from lamina.archive.changes import Change
    from lamina.drivers import Driver
    from lamina.oci import RunConfig


class State(StrEnum):
    """What a container is doing."""

    CREATED = "created"
    RUNNING = "running"
    MOUNTED = "mounted"
    EXITED = "exited"


class Container:
    """A container, from :meth:`Store.container` or :meth:`Store.open`.

    As a context manager it is mounted inside the block; at the end it is unmounted and, unless
    it is to be kept, removed. Objects of one container, in this process or another, may be
    used at once; a method that replaces or removes the writable layer then refuses.

    Any method raises :class:`ContainerNotFound` once the container was removed.
    """

    def __init__(self, core: Core, record: Record, *, lock: LockFile | None = None) -> None:
        self._core = core
        self._record = record
        self._lock = lock
        self._owned = lock is not None
        self._mutex = threading.RLock()
        self._mounts = 0
        self._runs = 0
        self._mounted: LayerId | None = None
        self._root: Path | None = None

    # -- what it is ---------------------------------------------------------------------

    @property
    def id(self) -> str:
        """64 hex digits."""
        return self._record.id

    @property
    def name(self) -> str:
        """Its name, given or made up."""
        return self._record.name

    @property
    def image(self) -> Image | None:
        """The image that it stands on; None if it stands on a directory."""
        image = self._record.image
        return None if image is None else Image(self._core, image)

    @property
    def base(self) -> Path | None:
        """The directory that it stands on; None if it stands on an image."""
        return self._record.base

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels that it was made with."""
        return self._record.labels

    @property
    def command(self) -> Sequence[str]:
        """The command that it was made for, if any."""
        return self._record.command

    @property
    def kept(self) -> bool:
        """Whether it stays when its maker ends."""
        return not self._record.ephemeral

    @property
    def created(self) -> datetime.datetime:
        """When it was made."""
        return datetime.datetime.fromtimestamp(self._record.created, datetime.UTC)

    @property
    def state(self) -> State:
        """What it is doing now, whichever process does it."""
        path = self._core.container_lock(self.id)
        record = fetch(self._core, self.id)
        if taken(path, RUNNING):
            return State.RUNNING
        if record.is_pinned or taken(path, USE):
            return State.MOUNTED
        return State.CREATED if record.started is None else State.EXITED

    @property
    def exit_code(self) -> int | None:
        """Of the last command; None before its end, or if its end was seen by nobody."""
        return fetch(self._core, self.id).exit_code

    @property
    def snapshots(self) -> list[str]:
        """Names of the snapshots, the oldest first."""
        with self._core.db.read() as tx:
            rows = tx.rows(
                "SELECT name FROM snapshots WHERE container = ? ORDER BY created", (self.id,)
            )
        return [row[0] for row in rows]

    # -- mounting -----------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The top of the file system, while mounted by this object.

        A snapshot, fork or rollback meanwhile may change it.
        """
        if self._root is None:
            raise LaminaError(f"container {self.name} is not mounted: use 'with' or mount()")
        return self._root

    def mount(self) -> Path:
        """Mount it, or count one more use; returns :attr:`root`. Each needs one :meth:`unmount`."""
        with self._mutex:
            if not self._mounts:
                self._lock = self._lock or LockFile(self._core.container_lock(self.id))
                self._lock.share(USE)
                try:
                    self._get()
                except BaseException:
                    self._leave()
                    raise
            self._mounts += 1
            return self.root

    def unmount(self) -> None:
        """Give back one :meth:`mount`; the last of all processes unmounts.

        Raises OSError (EBUSY) while someone has a file open in it; it stays mounted then.
        """
        with self._mutex:
            if self._mounts == 1:
                self._put()
                self._leave()
            self._mounts = max(0, self._mounts - 1)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """:meth:`mount` and :meth:`unmount` around a block."""
        root = self.mount()
        try:
            yield root
        finally:
            self.unmount()

    def pin(self) -> Path:
        """Mount it until :meth:`unpin` or a reboot, whatever becomes of this process."""
        with self._mutex, self.mounted():
            record = fetch(self._core, self.id)
            if record.is_pinned:
                return self.root
            path = self._driver.pin(record.layer)
            with self._core.db.write() as tx:
                tx.run("UPDATE containers SET pinned = ? WHERE id = ?", (boot_id(), self.id))
            return path

    def unpin(self) -> bool:
        """End :meth:`pin`. Whether it was pinned."""
        with self._mutex:
            record = fetch(self._core, self.id)
            if not record.is_pinned:
                return False
            self._driver.unpin(record.layer)
            with self._core.db.write() as tx:
                tx.run("UPDATE containers SET pinned = NULL WHERE id = ?", (self.id,))
            return True

    def __enter__(self) -> Self:
        self.mount()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unmount()
        if self._owned:
            self.remove()

    # -- using --------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        check: bool = True,
        network: str = "host",
        capture: bool = False,
        runtime: str | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the container and wait for its end.

        Environment, directory and user default to what the image says; ``env`` adds to it.
        ``capture`` collects stdout and stderr. With ``runtime`` ("crun" or "runc") that OCI
        runtime makes the container, and the command is its pid 1. Other options (``stdin``,
        ``mounts``, ``timeout``...) are those of :func:`lamina.sandbox.run.run`.

        Raises:
            subprocess.CalledProcessError: with ``check``, when the status is not 0.
            CommandNotFound: there is no such command in the container.
        """
        runner = self._core.runner
        if runner is None:
            raise LaminaError("this store can't run commands: use lamina.Store")
        image = self.image
        defaults = Defaults() if image is None else image.defaults
        if runtime is not None:
            options |= {"runtime": runtime, "runtime_state": self._core.run / "oci"}
        if capture:
            import subprocess

            options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        with self.mounted() as root, self._running():
            try:
                result = runner(
                    root,
                    argv,
                    env={**defaults.env, **(env or {})},
                    cwd=cwd or defaults.working_dir,
                    user=user or defaults.user,
                    network=network,
                    check=False,
                    **options,
                )
            except CommandNotFound as error:
                self._ended(error.exit_code)
                raise
            self._ended(result.returncode)
        if check:
            result.check_returncode()
        return result

    def changes(self) -> list[Change]:
        """What differs from the image or directory that it stands on, sorted by path."""
        record = fetch(self._core, self.id)
        return self._driver.changes(record.layer, record.floor)

    def diff(self, *, xattrs: Xattrs = "portable", clamp_mtime: int | None = None) -> BinaryIO:
        """The changes as an uncompressed layer tar; close it.

        ``xattrs``: which extended attributes go along, those that any reader of layers takes for
        what they are, or ``"all"`` that can be kept (:mod:`lamina.archive.xattrs`).
        ``clamp_mtime``: the latest modification time that a file gets, in seconds since 1970.
        """
        options = pack_options(xattrs, clamp_mtime=clamp_mtime)
        record = fetch(self._core, self.id)
        return self._driver.diff(record.layer, record.floor, options=options)

    def export(
        self,
        *,
        xattrs: Xattrs = "portable",
        clamp_mtime: int | None = None,
        sparse: bool = False,
    ) -> BinaryIO:
        """The whole file system as an uncompressed tar; mounted until the stream is closed.

        ``xattrs`` and ``clamp_mtime`` as in :meth:`diff`. ``sparse`` leaves out runs of zeros, in a
        form that GNU tar and bsdtar know but not every reader of layers.
        """
        from lamina.archive.pack import pack_tree
        from lamina.archive.stream import open_chunks

        options = pack_options(xattrs, sparse=sparse, clamp_mtime=clamp_mtime)
        root = self.mount()
        return open_chunks(pack_tree(root, options=options), self.unmount)

    def size(self) -> int:
        """Bytes of the files that it has of its own: those written or changed."""
        record = fetch(self._core, self.id)
        try:
            return self._driver.diff_size(record.layer, record.floor)
        except LayerNotFound:
            fetch(self._core, self.id)  # says so if it was removed meanwhile
            raise

    def commit(
        self,
        name: str | None = None,
        *,
        message: str = "",
        author: str = "",
        squash: bool = False,
        config: RunConfig | None = None,
        xattrs: Xattrs = "portable",
    ) -> Image:
        """Make an image of what the container is now: one layer more than its image has.

        Over a directory the image has one layer, which holds the changes alone. With
        ``squash`` it has one layer, which holds everything. ``config`` replaces how the image
        is run. ``xattrs`` as in :meth:`diff`. With ``SOURCE_DATE_EPOCH`` in the environment the
        image is made at that time, and no file in its new layer is later. May be called while
        mounted; for files that are being written no promise is made.
        """
        from lamina.store import committing

        return committing.commit(
            self._core,
            self,
            name,
            message=message,
            author=author,
            squash=squash,
            config=config,
            xattrs=xattrs,
        )

    # -- branching ----------------------------------------------------------------------

    def fork(self, name: str | None = None, *, keep: bool | None = None) -> Container:
        """A second container that begins as this one is now, in constant time.

        ``keep`` as in :meth:`Store.container`; by default as this one.

        Raises:
            ContainerRunning: someone else has it mounted, or something runs in it.
            NameInUse, InvalidName: about ``name``.
        """
        ephemeral = self._record.ephemeral if keep is None else not keep
        id = new_id()
        lock = own(self._core, id) if ephemeral else None
        try:
            with self._alone() as record:
                other = branches.fork(self._core, record, id, name, ephemeral=ephemeral)
        except BaseException:
            if lock is not None:
                lock.close()
            raise
        return Container(self._core, other, lock=lock)

    def snapshot(self, name: str) -> None:
        """Give the state of now a name, to come back to; in constant time.

        Raises as :meth:`fork`.
        """
        with self._alone() as record:
            branches.snapshot(self._core, record, name)

    def rollback(self, name: str) -> None:
        """Go back to a snapshot, in constant time. What was written since is lost.

        Raises:
            InvalidName: there is no such snapshot.
            ContainerRunning: as :meth:`fork`.
        """
        with self._alone() as record:
            branches.rollback(self._core, record, name)

    def remove_snapshot(self, name: str) -> None:
        """Forget a snapshot; the container stays as it is."""
        branches.remove_snapshot(self._core, fetch(self._core, self.id), name)

    def remove(self, *, force: bool = False) -> None:
        """Remove it with its snapshots and all that only it needs.

        ``force`` also ends a :meth:`pin`.

        Raises:
            ContainerRunning: someone else has it mounted, or something runs in it.
        """
        if force:
            self.unpin()
        with self._alone(remount=False) as record:
            with self._core.db.write() as tx:
                rows = tx.rows("SELECT layer FROM snapshots WHERE container = ?", (self.id,))
                tx.run("DELETE FROM containers WHERE id = ?", (self.id,))
                lease = self._core.leases.token
                doomed = release(tx, record.layer, lease)
                for (layer,) in rows:
                    doomed += release(tx, layer, lease)
            self._mounts = 0
            self._owned = False
        discard(self._core, doomed)

    def clear(self) -> None:
        """Unmount what a process that died left mounted; remove what was to end with it."""
        if self._record.ephemeral:
            self.remove(force=True)
            return
        with self._alone() as record:
            self._driver.put(record.layer)

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.id[:12]}>"

    @property
    def _driver(self) -> Driver:
        return self._core.driver_named(self._record.driver)

    # -- locks and mounts ---------------------------------------------------------------

    @contextmanager
    def _alone(self, *, remount: bool = True) -> Iterator[Record]:
        """The container unmounted and ours alone; mounted again after, if it was."""
        with self._mutex:
            self._lock = self._lock or LockFile(self._core.container_lock(self.id))
            if self._runs or not self._lock.try_alone(USE):
                self._leave_unless_mounted()
                raise ContainerRunning(f"container {self.name} is in use by a process")
            try:
                record = fetch(self._core, self.id)
                if record.is_pinned:
                    raise ContainerRunning(f"container {self.name} is mounted: unmount it first")
                self._put()
                yield record
            finally:
                if self._mounts and remount:
                    self._get()
                    self._lock.share(USE)
                self._leave_unless_mounted()

    def _get(self) -> None:
        if self._mounted is None:
            layer = fetch(self._core, self.id).layer
            self._root = self._driver.get(layer)
            self._mounted = layer

    def _put(self) -> None:
        if self._mounted is not None:
            self._driver.put(self._mounted)
            self._mounted = self._root = None

    def _leave_unless_mounted(self) -> None:
        if not self._mounts:
            self._leave()

    def _leave(self) -> None:
        """Unlock USE; close the lock file unless the container is to end with us."""
        if self._lock is None:
            return
        if self._owned:
            self._lock.release(USE)
        else:
            self._lock.close()
            self._lock = None

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self._mutex:
            assert self._lock is not None
            self._lock.share(RUNNING)
            self._runs += 1
        with self._core.db.write() as tx:
            tx.run(
                "UPDATE containers SET started = ?, finished = NULL, exit_code = NULL WHERE id = ?",
                (time.time(), self.id),
            )
        try:
            yield
        finally:
            with self._mutex:
                self._runs -= 1
                if not self._runs:
                    self._lock.release(RUNNING)

    def _ended(self, status: int) -> None:
        with self._core.db.write() as tx:
            tx.run(
                "UPDATE containers SET finished = ?, exit_code = ? WHERE id = ?",
                (time.time(), status, self.id),
            )


def own(core: Core, id: str) -> LockFile:
    """Lock a container that is to end with this process."""
    lock = LockFile(core.container_lock(id))
    lock.share(OWNER)
    return lock
