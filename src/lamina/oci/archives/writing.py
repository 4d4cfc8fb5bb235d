"""Writing image archives: straight into any stream, the index last.

The same images written in the same order give the same bytes: members are root's, 0644, and from
1970, or the moment that ``SOURCE_DATE_EPOCH`` names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import msgspec

from lamina.archive.tar import Entry, TarWriter, Type
from lamina.errors import InvalidImage
from lamina.oci import mediatypes
from lamina.oci.archives.kinds import DOCKER_MANIFEST, INDEX, OCI_LAYOUT
from lamina.oci.descriptor import Descriptor
from lamina.oci.epoch import source_date_epoch
from lamina.oci.layout.names import known_names, named, without_names
from lamina.oci.layout.reading import VERSION_FILE, blob_path
from lamina.oci.layout.unnamed import Unnamed
from lamina.oci.manifest import Index, Manifest, decode_manifest
from lamina.oci.reference import Reference

_CHUNK = 1 << 20


class Sink(Protocol):
    """Where an archive goes: a file, a pipe, a socket's file."""

    def write(self, data: bytes | memoryview, /) -> int | None:
        """Write some of ``data``, or all."""


class OciArchiveTarget:
    """An image layout as a tar (a :class:`lamina.oci.content.Target`).

    Blobs go out as they come: nothing is kept but their names. Any number of threads may write,
    one at a time. A blob that fails half-way spoils the archive: what follows is refused, and
    ``close`` does not make it look complete.
    """

    def __init__(self, sink: Sink, description: str = "the archive") -> None:
        """Writes the first members. ``sink`` stays the caller's.

        Raises LaminaError where ``SOURCE_DATE_EPOCH`` is no time.
        """
        self._description = description
        self._tar = TarWriter(_Whole(sink))
        self._lock = threading.RLock()
        self._there: set[str] = set()
        self._entries: list[Descriptor] = []
        self._unnamed = Unnamed()
        self._state = ""  # why nothing more can be written
        self._mtime_ns = (source_date_epoch() or 0) * 1_000_000_000
        self._add_document(OCI_LAYOUT, VERSION_FILE)

    @property
    def description(self) -> str:
        """What the archive is called."""
        return self._description

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob was written already."""
        return blob_path(descriptor.digest) in self._there

    def put(
        self,
        descriptor: Descriptor,
        stream: BinaryIO,
        *,
        reopen: Callable[[], BinaryIO] | None = None,
    ) -> None:
        """See :meth:`lamina.oci.content.Target.put`; what has gone out can't be taken back."""
        with self._lock:
            if not self.has(descriptor):
                self._add(blob_path(descriptor.digest), descriptor.size, _chunks(stream))

    def put_manifest(self, descriptor: Descriptor, data: bytes, name: str | None) -> None:
        """See :meth:`lamina.oci.content.Target.put_manifest`; names are as in a layout."""
        with self._lock:
            entry = named(descriptor, name)
            if not self.has(descriptor):
                self._add_document(blob_path(descriptor.digest), data)
            self._unnamed.put(descriptor, data, name)
            if taken := known_names(entry):
                others = (without_names(other, taken) for other in self._entries)
                self._entries = [other for other in others if other is not None]
                self._entries.append(entry)

    def close(self) -> None:
        """Write the index and the end, unless the archive is spoiled. May be called twice."""
        with self._lock:
            if self._state:
                return
            self._entries += [named(descriptor, None) for descriptor in self._unnamed.take()]
            self._end()
            self._tar.close()
            self._state = "is complete"

    def _end(self) -> None:
        self._add_document(INDEX, Index(manifests=self._entries).encode())

    def _add_document(self, path: str, data: bytes) -> None:
        self._add(path, len(data), iter((data,)))

    def _add(self, path: str, size: int, content: Iterator[bytes]) -> None:
        if self._state:
            raise ValueError(f"{self._description} {self._state}")
        try:
            self._add_directories(path)
            entry = Entry(path.encode(), mode=0o644, size=size, mtime_ns=self._mtime_ns)
            self._tar.add(entry, content)
        except BaseException:
            self._state = "is spoiled: a blob failed half-way"
            raise
        self._there.add(path)

    def _add_directories(self, path: str) -> None:
        parts = path.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            directory = "/".join(parts[:count])
            if directory not in self._there:
                self._there.add(directory)
                self._tar.add(
                    Entry(directory.encode(), Type.DIRECTORY, mode=0o755, mtime_ns=self._mtime_ns)
                )


class DockerArchiveTarget(OciArchiveTarget):
    """What ``docker load`` reads, of any version, and everybody else: an image layout as well.

    Docker up to 24 wants ``manifest.json``, and layers that are not compressed: others are
    refused.
    """

    def __init__(self, sink: Sink, description: str = "the archive") -> None:
        super().__init__(sink, description)
        self._manifests: dict[str, Manifest] = {}
        self._tags: dict[str, str] = {}  # name to the digest of its manifest

    def put(
        self,
        descriptor: Descriptor,
        stream: BinaryIO,
        *,
        reopen: Callable[[], BinaryIO] | None = None,
    ) -> None:
        """As for any target; :class:`InvalidImage` for a layer that is compressed."""
        self._check_layer(descriptor)
        super().put(descriptor, stream, reopen=reopen)

    def put_manifest(self, descriptor: Descriptor, data: bytes, name: str | None) -> None:
        """As for any target; ``name`` is an image's, never a bare tag.

        Raises :class:`InvalidImage` for an index, an artifact, and compressed layers.
        """
        if descriptor.media_type not in mediatypes.MANIFESTS:
            raise InvalidImage(
                "a docker archive has no indexes: choose one platform, or an OCI archive"
            )
        manifest = decode_manifest(data, descriptor.media_type)
        assert isinstance(manifest, Manifest)
        if manifest.config.media_type not in mediatypes.CONFIGS:
            raise InvalidImage(f"{descriptor.digest} is no image of layers, as Docker wants them")
        for layer in manifest.layers:
            self._check_layer(layer)
        reference = None if name is None else Reference.parse(name)
        with self._lock:
            super().put_manifest(descriptor, data, None if reference is None else str(reference))
            self._manifests[descriptor.digest] = manifest
            if reference is not None and reference.tag is not None:
                self._tags[reference._replace(digest=None).familiar] = descriptor.digest

    def _end(self) -> None:
        items = [
            {
                "Config": blob_path(manifest.config.digest),
                "RepoTags": [tag for tag, owner in self._tags.items() if owner == digest] or None,
                "Layers": [blob_path(layer.digest) for layer in manifest.layers],
            }
            for digest, manifest in self._manifests.items()
        ]
        super()._end()
        self._add_document(DOCKER_MANIFEST, msgspec.json.encode(items))

    @staticmethod
    def _check_layer(descriptor: Descriptor) -> None:
        media_type = descriptor.media_type
        if mediatypes.is_layer(media_type) and mediatypes.layer_compression(media_type) != "none":
            raise InvalidImage(
                f"layer {descriptor.digest} is compressed ({media_type}), which Docker before 25 "
                "can't load: 'lamina pull NAME' (or 'lamina load'), then 'lamina save NAME -o FILE'"
                " writes such an archive; or write to oci-archive:FILE"
            )


class _Whole:
    """Writes all of what it is given, also to a raw file that writes a part."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        while view:
            written = self._sink.write(view)
            if written is None or written == len(view):
                return
            view = view[written:]


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while data := stream.read(_CHUNK):
        yield data
