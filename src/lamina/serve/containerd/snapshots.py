"""The service ``containerd.services.snapshots.v1.Snapshots``: messages to calls and back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from lamina.drivers.base import Mount
from lamina.serve.containerd.api import mount_pb2, snapshots_pb2
from lamina.serve.containerd.calls import Busy, Call
from lamina.store.snapshots import Info, Snapshots

NAME = "containerd.services.snapshots.v1.Snapshots"
_BATCH = 100
"""Snapshots in one message of a list, at most."""
_LONGEST_ANSWER = 2 << 20
"""Bytes of such a message, unless one snapshot takes more: many clients take no more than 4 MiB."""
_LISTS = 16
"""Lists that are sent at once: one that nobody reads on keeps one of the server's threads."""
_PATIENCE = 5.0  # seconds that a further one waits


class SnapshotsService:
    """The service over :class:`lamina.store.snapshots.Snapshots`. It has one snapshotter: us."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._lists = threading.Semaphore(_LISTS)

    def calls(self) -> dict[str, Call]:
        """Its methods."""
        messages = snapshots_pb2
        return {
            "Prepare": Call(messages.PrepareSnapshotRequest, self._prepare),
            "View": Call(messages.ViewSnapshotRequest, self._view),
            "Mounts": Call(messages.MountsRequest, self._mounts),
            "Commit": Call(messages.CommitSnapshotRequest, self._commit),
            "Remove": Call(messages.RemoveSnapshotRequest, self._remove),
            "Stat": Call(messages.StatSnapshotRequest, self._stat),
            "Update": Call(messages.UpdateSnapshotRequest, self._update),
            "List": Call(messages.ListSnapshotsRequest, self._list, stream=True),
            "Usage": Call(messages.UsageRequest, self._usage),
            "Cleanup": Call(messages.CleanupRequest, self._cleanup),
        }

    def _prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        mounts = self._snapshots.prepare(request.key, request.parent, dict(request.labels))
        return snapshots_pb2.PrepareSnapshotResponse(mounts=map(mount_message, mounts))

    def _view(
        self, request: snapshots_pb2.ViewSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.ViewSnapshotResponse:
        mounts = self._snapshots.view(request.key, request.parent, dict(request.labels))
        return snapshots_pb2.ViewSnapshotResponse(mounts=map(mount_message, mounts))

    def _mounts(
        self, request: snapshots_pb2.MountsRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.MountsResponse:
        mounts = self._snapshots.mounts(request.key)
        return snapshots_pb2.MountsResponse(mounts=map(mount_message, mounts))

    def _commit(
        self, request: snapshots_pb2.CommitSnapshotRequest, context: grpc.ServicerContext
    ) -> Empty:
        labels = dict(request.labels)
        self._snapshots.commit(request.name, request.key, labels, parent=request.parent)
        return Empty()

    def _remove(
        self, request: snapshots_pb2.RemoveSnapshotRequest, context: grpc.ServicerContext
    ) -> Empty:
        self._snapshots.remove(request.key)
        return Empty()

    def _stat(
        self, request: snapshots_pb2.StatSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.StatSnapshotResponse:
        return snapshots_pb2.StatSnapshotResponse(
            info=info_message(self._snapshots.stat(request.key))
        )

    def _update(
        self, request: snapshots_pb2.UpdateSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.UpdateSnapshotResponse:
        info = request.info
        new = self._snapshots.update(info.name, dict(info.labels), request.update_mask.paths)
        return snapshots_pb2.UpdateSnapshotResponse(info=info_message(new))

    def _list(
        self, request: snapshots_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        found = map(info_message, self._snapshots.list(request.filters))
        if not self._lists.acquire(timeout=_PATIENCE):
            raise Busy("too many lists are being read")
        try:
            for batch in _batches(found):
                yield snapshots_pb2.ListSnapshotsResponse(info=batch)
        finally:
            self._lists.release()

    def _usage(
        self, request: snapshots_pb2.UsageRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.UsageResponse:
        return snapshots_pb2.UsageResponse(**self._snapshots.usage(request.key)._asdict())

    def _cleanup(
        self, request: snapshots_pb2.CleanupRequest, context: grpc.ServicerContext
    ) -> Empty:
        self._snapshots.cleanup()
        return Empty()


def mount_message(mount: Mount) -> mount_pb2.Mount:
    """A mount, as a message."""
    return mount_pb2.Mount(type=mount.type, source=mount.source, options=mount.options)


def info_message(info: Info) -> snapshots_pb2.Info:
    """What is known of a snapshot, as a message."""
    return snapshots_pb2.Info(
        name=info.name,
        parent=info.parent,
        kind=info.kind.name,
        created_at=_timestamp(info.created),
        updated_at=_timestamp(info.updated),
        labels=info.labels,
    )


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=rest)


def _batches(infos: Iterable[snapshots_pb2.Info]) -> Iterator[list[snapshots_pb2.Info]]:
    batch: list[snapshots_pb2.Info] = []
    size = 0
    for info in infos:
        size += info.ByteSize()
        if batch and (len(batch) == _BATCH or size > _LONGEST_ANSWER):
            yield batch
            batch, size = [], info.ByteSize()
        batch.append(info)
    if batch:
        yield batch
