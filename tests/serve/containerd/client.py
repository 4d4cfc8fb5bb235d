"""A client of the servers' socket: the calls of lamina.store.snapshots, over gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from lamina.drivers.base import Mount
from lamina.errors import (
    InvalidSnapshotRequest,
    LaminaError,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotRefused,
)
from lamina.serve.containerd.api import snapshots_pb2 as api
from lamina.store.snapshots import Info, Kind, Usage

SERVICE = "/containerd.services.snapshots.v1.Snapshots"
NO_LABELS: Mapping[str, str] = {}

_ERRORS: dict[grpc.StatusCode, type[LaminaError]] = {
    grpc.StatusCode.NOT_FOUND: SnapshotNotFound,
    grpc.StatusCode.ALREADY_EXISTS: SnapshotExists,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidSnapshotRequest,
}


class Snapshotter(Protocol):
    """What the suite asks of a snapshotter, in process or behind a socket."""

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] = ...
    ) -> list[Mount]: ...
    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = ...) -> list[Mount]: ...
    def mounts(self, key: str) -> list[Mount]: ...
    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = ..., *, parent: str = ""
    ) -> None: ...
    def remove(self, key: str) -> None: ...
    def stat(self, key: str) -> Info: ...
    def list(self, filters: Sequence[str] = ...) -> Iterator[Info]: ...
    def usage(self, key: str) -> Usage: ...
    def update(self, key: str, labels: Mapping[str, str], fields: Sequence[str] = ...) -> Info: ...
    def cleanup(self) -> int: ...


class Client:
    """A :class:`Snapshotter` at a socket. ``call`` is for what has no method here."""

    def __init__(self, socket: Path) -> None:
        self.channel = grpc.insecure_channel(
            f"unix:{socket}", options=(("grpc.use_local_subchannel_pool", 1),)
        )

        self.timeout = 60.0  # seconds; also for a server that is not there yet

    def close(self) -> None:
        self.channel.close()

    def raw(self, method: str, data: bytes) -> bytes:
        """An answer to some bytes."""
        call = self.channel.unary_unary(method, None, None)
        answer: bytes = call(data, timeout=self.timeout, wait_for_ready=True)
        return answer

    def call(self, method: str, request: Any, answer: Any) -> Any:
        try:
            return answer.FromString(self.raw(f"{SERVICE}/{method}", request.SerializeToString()))
        except grpc.RpcError as error:
            raise _translated(error) from error

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] = NO_LABELS
    ) -> list[Mount]:
        request = api.PrepareSnapshotRequest(key=key, parent=parent, labels=labels)
        return _mounts(self.call("Prepare", request, api.PrepareSnapshotResponse))

    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] = NO_LABELS
    ) -> list[Mount]:
        request = api.ViewSnapshotRequest(key=key, parent=parent, labels=labels)
        return _mounts(self.call("View", request, api.ViewSnapshotResponse))

    def mounts(self, key: str) -> list[Mount]:
        return _mounts(self.call("Mounts", api.MountsRequest(key=key), api.MountsResponse))

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = NO_LABELS, *, parent: str = ""
    ) -> None:
        request = api.CommitSnapshotRequest(name=name, key=key, labels=labels, parent=parent)
        self.call("Commit", request, Empty)

    def remove(self, key: str) -> None:
        self.call("Remove", api.RemoveSnapshotRequest(key=key), Empty)

    def stat(self, key: str) -> Info:
        answer = self.call("Stat", api.StatSnapshotRequest(key=key), api.StatSnapshotResponse)
        return _info(answer.info)

    def list(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        call = self.channel.unary_stream(
            f"{SERVICE}/List",
            api.ListSnapshotsRequest.SerializeToString,
            api.ListSnapshotsResponse.FromString,
        )
        try:
            for answer in call(api.ListSnapshotsRequest(filters=filters), timeout=60):
                yield from map(_info, answer.info)
        except grpc.RpcError as error:
            raise _translated(error) from error

    def usage(self, key: str) -> Usage:
        answer = self.call("Usage", api.UsageRequest(key=key), api.UsageResponse)
        return Usage(answer.size, answer.inodes)

    def update(self, key: str, labels: Mapping[str, str], fields: Sequence[str] = ()) -> Info:
        mask = FieldMask(paths=fields) if fields else None
        info = api.Info(name=key, labels=labels, kind=api.VIEW, parent="ignored")
        request = api.UpdateSnapshotRequest(info=info, update_mask=mask)
        return _info(self.call("Update", request, api.UpdateSnapshotResponse).info)

    def cleanup(self) -> int:
        self.call("Cleanup", api.CleanupRequest(), Empty)
        return 0


def _mounts(answer: Any) -> list[Mount]:
    return [Mount(m.type, m.source, tuple(m.options)) for m in answer.mounts]


def _info(message: Any) -> Info:
    return Info(
        message.name,
        message.parent,
        Kind(message.kind),
        message.created_at.ToNanoseconds(),
        message.updated_at.ToNanoseconds(),
        dict(message.labels),
    )


def _translated(error: grpc.RpcError) -> Exception:
    assert isinstance(error, grpc.Call)
    code, text = error.code(), error.details() or ""
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return SnapshotRefused("?", text)
    kind = _ERRORS.get(code)
    return error if kind is None else kind(text)
