"""containerd's content store, as a client: by the files it keeps, or by its content service."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import grpc
from google.protobuf.empty_pb2 import Empty

from lamina.archive.stream import open_chunks
from lamina.oci.digest import parts
from lamina.serve.containerd.api import content_pb2, leases_pb2
from lamina.serve.containerd.calls import Unsupported
from lamina.types import Digest

NAMESPACE = "containerd-namespace"
LEASE = "containerd-lease"

_NAME = "/containerd.services.content.v1.Content"
_LEASES = "/containerd.services.leases.v1.Leases"
_LEASED = timedelta(hours=1)
"""How long a blob is kept for who is to name it in an image."""
_LONGEST_ANSWER = 16 << 20  # bytes; containerd's own limit
_BLOCK = 1 << 20

Metadata = tuple[tuple[str, str], ...]


class Content:
    """Blobs of containerd.

    Args:
        root: its content store, ``io.containerd.content.v1.content`` in its root; read in place.
        socket: where its services are: read from where ``root`` lacks the blob, and written to.
    """

    def __init__(self, root: Path | None, socket: Path | None) -> None:
        self._root = root
        self._socket = socket
        self._mutex = threading.Lock()
        self._channel: grpc.Channel | None = None

    def open(self, digest: Digest, metadata: Metadata) -> BinaryIO:
        """A blob. Reading it from the service raises :class:`grpc.RpcError`.

        Raises:
            Unsupported: there is no way to it from here.
            InvalidImage: it is no digest.
        """
        algorithm, digits = parts(digest)
        if self._root is not None:
            try:
                return open(self._root / "blobs" / algorithm / digits, "rb")
            except FileNotFoundError:
                if self._socket is None:
                    raise Unsupported(f"blob {digest} is not in {self._root}") from None
        return open_chunks(self._read(self._connected(), digest, metadata))

    def write(
        self,
        chunks: Iterable[bytes],
        ref: str,
        metadata: Metadata,
        labels: Callable[[], Mapping[str, str]],
    ) -> tuple[Digest, int]:
        """Write a new blob; its digest and size. ``labels`` is asked for at the end.

        One that is there already is no error. What fails leaves nothing, unless the caller chose
        the ``ref`` ("" otherwise): another may be writing under that, or go on with it. Where
        ``metadata`` names no lease, a new one of an hour keeps the blob from garbage collection.

        Raises:
            Unsupported: the server does not know where containerd is.
            grpc.RpcError: containerd refused, or is away.
        """
        channel = self._connected()
        name = ref or f"lamina-diff-{os.urandom(16).hex()}"
        if all(key != LEASE for key, _ in metadata):
            metadata += self._new_lease(channel, metadata)
        try:
            with _Ingest(channel, name, metadata) as ingest:
                for chunk in _pieces(chunks):
                    ingest.put(chunk)
                return ingest.commit(labels())
        except BaseException:
            if not ref:
                self._abort(channel, name, metadata)
            raise

    def close(self) -> None:
        """Close the connection."""
        with self._mutex:
            if self._channel is not None:
                self._channel.close()
            self._channel = None

    def _read(self, channel: grpc.Channel, digest: Digest, metadata: Metadata) -> Iterator[bytes]:
        read = channel.unary_stream(
            f"{_NAME}/Read",
            content_pb2.ReadContentRequest.SerializeToString,
            content_pb2.ReadContentResponse.FromString,
        )
        call = read(content_pb2.ReadContentRequest(digest=digest), metadata=metadata)
        try:
            for answer in call:
                if answer.data:
                    yield answer.data
        finally:
            call.cancel()

    def _new_lease(self, channel: grpc.Channel, metadata: Metadata) -> Metadata:
        """What names a new lease; nothing where containerd runs without leases."""
        create = channel.unary_unary(
            f"{_LEASES}/Create",
            leases_pb2.CreateRequest.SerializeToString,
            leases_pb2.CreateResponse.FromString,
        )
        end = datetime.now(UTC) + _LEASED
        request = leases_pb2.CreateRequest(
            id=f"lamina-diff-{os.urandom(16).hex()}",
            labels={"containerd.io/gc.expire": end.isoformat(timespec="seconds")},
        )
        try:
            return ((LEASE, create(request, metadata=metadata).lease.id),)
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call) or error.code() != grpc.StatusCode.UNIMPLEMENTED:
                raise
            return ()

    def _abort(self, channel: grpc.Channel, ref: str, metadata: Metadata) -> None:
        abort = channel.unary_unary(
            f"{_NAME}/Abort", content_pb2.AbortRequest.SerializeToString, Empty.FromString
        )
        try:
            abort(content_pb2.AbortRequest(ref=ref), metadata=metadata, timeout=10)
        except grpc.RpcError:
            pass  # containerd lets go of it after a day

    def _connected(self) -> grpc.Channel:
        if self._socket is None:
            raise Unsupported("the server was not told where containerd's socket is")
        with self._mutex:
            if self._channel is None:
                options = (("grpc.max_receive_message_length", _LONGEST_ANSWER),)
                self._channel = grpc.insecure_channel(f"unix:{self._socket}", options=options)
            return self._channel


class _Ingest:
    """A blob being written: each request is answered before the next is sent."""

    def __init__(self, channel: grpc.Channel, ref: str, metadata: Metadata) -> None:
        import hashlib

        self._ref = ref
        self._size = 0
        self._hash = hashlib.sha256()
        self._requests: SimpleQueue[content_pb2.WriteContentRequest | None] = SimpleQueue()
        write = channel.stream_stream(
            f"{_NAME}/Write",
            content_pb2.WriteContentRequest.SerializeToString,
            content_pb2.WriteContentResponse.FromString,
        )
        self._call: Any = write(iter(self._requests.get, None), metadata=metadata)

    def __enter__(self) -> _Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self._call.cancel()

    def put(self, data: bytes) -> None:
        self._hash.update(data)
        self._ask(content_pb2.WRITE, offset=self._size, data=data)
        self._size += len(data)

    def commit(self, labels: Mapping[str, str]) -> tuple[Digest, int]:
        digest = Digest(f"sha256:{self._hash.hexdigest()}")
        try:
            self._ask(
                content_pb2.COMMIT,
                offset=self._size, total=self._size, expected=digest, labels=labels,
            )  # fmt: skip
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call) or error.code() != grpc.StatusCode.ALREADY_EXISTS:
                raise
        return digest, self._size

    def _ask(self, action: content_pb2.WriteAction, **fields: Any) -> None:
        self._requests.put(content_pb2.WriteContentRequest(action=action, ref=self._ref, **fields))
        next(self._call)


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that are neither small nor too large for a message."""
    block = bytearray()
    for chunk in chunks:
        block += chunk
        while len(block) >= _BLOCK:
            yield bytes(block[:_BLOCK])
            del block[:_BLOCK]
    if block:
        yield bytes(block)
