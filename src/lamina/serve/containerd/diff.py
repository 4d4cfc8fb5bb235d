"""The service ``containerd.services.diff.v1.Diff``: blobs into snapshots, and snapshots into blobs.

What it can't do (mounts of another snapshotter, media types it does not know) is UNIMPLEMENTED:
then containerd asks the next differ of its list.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import grpc

from lamina.archive.compression import compress
from lamina.archive.compression.formats import Compression
from lamina.archive.pack import PackOptions
from lamina.drivers.base import Mount
from lamina.oci import mediatypes
from lamina.oci.digest import check_digest
from lamina.serve.containerd.api import descriptor_pb2, diff_pb2, mount_pb2
from lamina.serve.containerd.calls import Call, Unsupported
from lamina.serve.containerd.content import LEASE, NAMESPACE, Content, Metadata
from lamina.serve.metrics import Registry
from lamina.store.snapshots import Snapshots
from lamina.store.snapshots.diffs import Diffs, NotOurs

NAME = "containerd.services.diff.v1.Diff"

_UNCOMPRESSED = "containerd.io/uncompressed"
"""containerd's label of a compressed blob: the digest of what is in it."""
_BLOCK = 1 << 20


class DiffService:
    """The service over snapshots and containerd's content."""

    def __init__(self, snapshots: Snapshots, content: Content, metrics: Registry) -> None:
        self._diffs = Diffs(snapshots)
        self._content = content
        self._unpacked = metrics.counter("lamina_unpacked_bytes_total", "Bytes of tars unpacked.")
        self._seconds = metrics.counter(
            "lamina_unpack_seconds_total", "Seconds spent on that: with the bytes, the rate."
        )
        self._packed = metrics.counter("lamina_packed_bytes_total", "Bytes of tars packed.")

    def calls(self) -> dict[str, Call]:
        """Its methods."""
        return {
            "Apply": Call(diff_pb2.ApplyRequest, self._apply),
            "Diff": Call(diff_pb2.DiffRequest, self._diff),
        }

    def _apply(
        self, request: diff_pb2.ApplyRequest, context: grpc.ServicerContext
    ) -> diff_pb2.ApplyResponse:
        blob = request.diff
        if request.payloads or not mediatypes.is_layer(blob.media_type):
            raise Unsupported(f"no layer that is known here: {blob.media_type}")
        digest = check_digest(blob.digest)
        mounts = _mounts(request.mounts)
        begun = time.monotonic()
        try:
            with self._content.open(digest, self._metadata(context, mounts)) as data:
                applied = self._diffs.apply(mounts, data, digest=digest, size=blob.size)
        except NotOurs as error:
            raise Unsupported(str(error)) from error
        self._unpacked.add(applied.size)
        self._seconds.add(time.monotonic() - begun)
        return diff_pb2.ApplyResponse(
            applied=descriptor_pb2.Descriptor(
                media_type=mediatypes.OCI_LAYER, digest=applied.diff_id, size=applied.size
            )
        )

    def _diff(
        self, request: diff_pb2.DiffRequest, context: grpc.ServicerContext
    ) -> diff_pb2.DiffResponse:
        media_type = request.media_type or mediatypes.layer_type("gzip")
        if not mediatypes.is_layer(media_type) or mediatypes.is_non_distributable(media_type):
            raise Unsupported(f"no layer that is known here: {media_type}")
        compression = Compression(mediatypes.layer_compression(media_type))
        diff_id = hashlib.sha256()

        def labels() -> dict[str, str]:
            found = dict(request.labels)
            if compression is not Compression.NONE:
                found[_UNCOMPRESSED] = f"sha256:{diff_id.hexdigest()}"
            return found

        def plain(tar: BinaryIO) -> Iterator[bytes]:
            while block := tar.read(_BLOCK):
                diff_id.update(block)
                self._packed.add(len(block))
                yield block

        mounts = _mounts(request.right)
        try:
            metadata = self._metadata(context, mounts)
            with self._diffs.diff(_mounts(request.left), mounts, options=_options(request)) as tar:
                chunks = compress(plain(tar), compression)
                digest, size = self._content.write(chunks, request.ref, metadata, labels)
        except NotOurs as error:
            raise Unsupported(str(error)) from error
        return diff_pb2.DiffResponse(
            diff=descriptor_pb2.Descriptor(media_type=media_type, digest=digest, size=size)
        )

    def _metadata(self, context: grpc.ServicerContext, mounts: Sequence[Mount]) -> Metadata:
        """The namespace and lease of a call, for the calls made on its behalf.

        containerd 1.7 does not tell its proxies. The namespace is then taken from the key of the
        snapshot that has the mounts: containerd's keys are ``NAMESPACE/NUMBER/NAME``.

        Raises:
            NotOurs: no snapshot has these mounts.
        """
        found = {
            key: value
            for key, value in context.invocation_metadata()
            if key in (NAMESPACE, LEASE) and isinstance(value, str)
        }
        if NAMESPACE not in found:
            namespace, slash, _ = self._diffs.key(mounts).partition("/")
            if slash:
                found[NAMESPACE] = namespace
        return tuple(found.items())


def _options(request: diff_pb2.DiffRequest) -> PackOptions | None:
    if not request.HasField("source_date_epoch"):
        return None
    return PackOptions(clamp_mtime_ns=request.source_date_epoch.ToNanoseconds())


def _mounts(messages: Sequence[mount_pb2.Mount]) -> list[Mount]:
    return [Mount(each.type, each.source, tuple(each.options)) for each in messages]
