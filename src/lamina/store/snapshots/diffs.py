"""Tars into snapshots and out of them, for one who names a snapshot by its mounts.

containerd's differ is told mounts, not keys. They are ours if a layer of ours is named in them
and its own mounts are just these; nothing that is not ours is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from lamina.archive.compression import open_stream
from lamina.drivers.base import Mount
from lamina.errors import (
    DigestMismatch,
    InvalidSnapshotRequest,
    LaminaError,
    LayerNotFound,
    SnapshotNotFound,
    SnapshotRefused,
)
from lamina.oci.digest import parts
from lamina.store.snapshots.records import Kind, Record
from lamina.store.snapshots.snapshots import Snapshots
from lamina.types import DiffId, Digest, LayerId

if TYPE_CHECKING:
    from lamina.archive.pack import PackOptions

_BLOCK = 1 << 20


class Applied(NamedTuple):
    """What was unpacked."""

    diff_id: DiffId
    size: int
    """Bytes of the uncompressed tar."""


class NotOurs(LaminaError):
    """Mounts that no snapshot here has."""


class Diffs:
    """Unpacks into the snapshots of a root, and packs what they change."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def apply(
        self, mounts: Sequence[Mount], blob: BinaryIO, *, digest: Digest, size: int
    ) -> Applied:
        """Unpack a blob, compressed or not, into the active snapshot that has these mounts.

        It is there when all of it proved to be what ``digest`` and ``size`` say, else the
        snapshot is as before. The snapshot must not be mounted.

        Raises:
            NotOurs: no snapshot has these mounts.
            SnapshotRefused: the one that has is a view.
            DigestMismatch, InvalidArchive: the blob is not what it should be.
        """
        record = self._find(mounts)
        if record.info.kind is not Kind.ACTIVE:
            raise SnapshotRefused(record.info.name, "it is a view")
        driver = self._snapshots.driver
        with self._snapshots.held(record.info.name) as again:
            if again.id != record.id:
                raise SnapshotNotFound(record.info.name)
            driver.release_mounts(record.layer)
            algorithm, _ = parts(digest)
            with (
                self._snapshots.written_early(),
                open_stream(blob, digest=algorithm, trailing="refuse") as tar,
                driver.stage(tar, lambda: record.parent_layer) as staged,
            ):
                while tar.read(_BLOCK):  # what follows the tar's end is of the DiffID too
                    pass
                if tar.digest != digest:
                    raise DigestMismatch("blob", digest, tar.digest)
                if tar.compressed_size != size:
                    raise InvalidSnapshotRequest(
                        f"blob {digest} has {tar.compressed_size} bytes, not {size}"
                    )
                driver.place(record.layer, record.parent_layer, staged)
            driver.mounts(record.layer)  # where the driver keeps a mount: it was told already
        return Applied(tar.diff_id, tar.size)

    @contextmanager
    def diff(
        self,
        left: Sequence[Mount],
        right: Sequence[Mount],
        *,
        options: PackOptions | None = None,
    ) -> Iterator[BinaryIO]:
        """What ``right`` changes of ``left``, as an uncompressed tar, made while it is read.

        Raises:
            NotOurs: no snapshot has such mounts.
        """
        upper = self._find(right)
        below = self._below(left, upper)
        driver = self._snapshots.driver
        with closing(driver.diff(upper.layer, below, options=options)) as tar:
            yield tar

    def key(self, mounts: Sequence[Mount]) -> str:
        """The key of the active snapshot or view that has these mounts.

        Raises:
            NotOurs: there is none.
        """
        return self._find(mounts).info.name

    def _below(self, mounts: Sequence[Mount], upper: Record) -> LayerId | None:
        if not mounts:
            return None
        lower = self._find(mounts)
        own_and_empty = lower.info.kind is Kind.VIEW and not lower.shares_layer
        return None if own_and_empty else lower.layer

    def _find(self, mounts: Sequence[Mount]) -> Record:
        """The active snapshot or view that has these mounts."""
        driver = self._snapshots.driver
        for name in _names(mounts):
            for record in self._snapshots.with_layer(name):
                if record.info.kind is Kind.COMMITTED:
                    continue
                readonly = record.info.kind is Kind.VIEW
                try:
                    if driver.mounts(record.layer, readonly=readonly) == list(mounts):
                        return record
                except LayerNotFound:
                    continue  # removed meanwhile
        raise NotOurs("these mounts are of no snapshot here")


def _names(mounts: Sequence[Mount]) -> Iterator[str]:
    """What could be the name of a layer in mounts: what stands between slashes, each once."""
    seen = set()
    for mount in mounts:
        for text in (mount.source, *mount.options):
            for path in text.partition("=")[2].split(":") if "=/" in text else [text]:
                for name in path.split("/"):
                    if name and name not in seen:
                        seen.add(name)
                        yield name
