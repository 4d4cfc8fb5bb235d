"""Copying images from any source to any target, byte for byte and without a store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, cast

from lamina.errors import InvalidImage
from lamina.oci import mediatypes, platform
from lamina.oci.content import read_document, verified
from lamina.oci.manifest import Index, Manifest, decode_manifest
from lamina.progress import Progress

if TYPE_CHECKING:
    from lamina.oci.config import ImageConfig
    from lamina.oci.content import Source, Target
    from lamina.oci.descriptor import Descriptor
    from lamina.oci.platform import Spec
    from lamina.progress import ProgressCallback

Report = Callable[["Descriptor"], None]
"""Told of each blob that was copied or was there."""


def copy(
    source: Source,
    target: Target,
    name: str | Descriptor | None,
    to: str | None = None,
    *,
    wanted: Spec | None = None,
    every_platform: bool = False,
    jobs: int = 1,
    report: Report | None = None,
    progress: ProgressCallback | None = None,
    abort: Callable[[], None] = lambda: None,
) -> Descriptor:
    """Copy an image, or all images of an index.

    What the target has is not read. Manifests go last, after all that they name, so that no
    reader finds half an image; the name goes with the last of them.

    Args:
        source: where the image is.
        target: where it goes; it is left open.
        name: what the source calls it, or what it resolved that to; None for the only one there.
        to: what the target is to call it; None for no name.
        wanted: which image of an index to copy, by default this machine's. An image that is in
            no index has to be for this platform, if one is given.
        every_platform: copy an index as it is, with all images and attestations in it.
        jobs: blobs copied at once; 1 for archives, whose order would not be the same each time.
        report: called after each blob, one thread at a time.
        progress: called as bytes come, by one thread at a time.
        abort: lets what waits for source or target in other threads wait no longer; called when
            the work ends before its time.

    Returns:
        What the target's name now means: an index for ``every_platform``, if there was one.

    Raises:
        ImageNotFound, AmbiguousName: as :meth:`lamina.oci.content.Source.resolve`.
        PlatformNotFound: there is no image for ``wanted``.
        BlobNotFound, DigestMismatch, InvalidImage: the source is damaged.
        RegistryError, OSError: it can't be read, or the target not be written.
    """
    found = source.resolve(name) if name is None or isinstance(name, str) else name
    meter = _Meter(f"copying {source.description}", progress)
    work = _Copy(source, target, jobs, report, meter, abort)
    document = work.document(found)
    if isinstance(document, Index) and not every_platform:
        found = select(source, document, wanted)
        document = work.document(found)
    elif isinstance(document, Manifest) and wanted is not None:
        check_platform(source, document, wanted)
    work.copy(found, document, to)
    return found


def select(source: Source, index: Index, wanted: Spec | None = None) -> Descriptor:
    """The manifest of an index for a platform, by default this machine's.

    An image without a platform is taken if its configuration fits. Raises PlatformNotFound, and
    what reading raises.
    """
    spec = wanted or platform.this_machine()

    def nested(descriptor: Descriptor) -> Index:
        inner = decode_manifest(read_document(source, descriptor), descriptor.media_type)
        assert isinstance(inner, Index)
        return inner

    found = platform.choose(index, spec, nested)
    if found.platform is None:
        manifest = decode_manifest(read_document(source, found), found.media_type)
        assert isinstance(manifest, Manifest)
        check_platform(source, manifest, spec)
    return found


def check_platform(source: Source, manifest: Manifest, wanted: Spec) -> None:
    """Raise PlatformNotFound unless a manifest's configuration says that it runs there.

    A configuration that says nothing, and an artifact's, is let pass.
    """
    from lamina.oci.config import CONFIG_LIMIT, ImageConfig

    if manifest.config.media_type not in mediatypes.CONFIGS:
        return
    check_config(ImageConfig.decode(read_document(source, manifest.config, CONFIG_LIMIT)), wanted)


def check_config(config: ImageConfig, wanted: Spec) -> None:
    """Raise PlatformNotFound if a configuration says that it is for what does not run there."""
    if config.os and config.architecture:
        found = platform.normalize(config.os, config.architecture, config.variant or "")
        platform.check(wanted, found)


class _Copy:
    def __init__(
        self,
        source: Source,
        target: Target,
        jobs: int,
        report: Report | None,
        meter: _Meter,
        abort: Callable[[], None],
    ) -> None:
        self._meter = meter
        self._abort = abort
        self._source = source
        self._target = target
        self._jobs = jobs
        self._report = report
        self._data: dict[str, bytes] = {}
        self._copied: set[str] = set()

    def document(self, descriptor: Descriptor) -> Manifest | Index:
        """Read a manifest or index, and keep its bytes till it is written."""
        data = read_document(self._source, descriptor)
        self._data[descriptor.digest] = data
        return decode_manifest(data, descriptor.media_type)

    def copy(
        self, descriptor: Descriptor, document: Manifest | Index, name: str | None, depth: int = 0
    ) -> None:
        """Copy all that a document names, then itself."""
        if depth > platform.MAX_DEPTH:
            raise InvalidImage(f"indexes within indexes, too deep ({descriptor.digest})")
        if isinstance(document, Index):
            for entry in document.manifests:
                self._copy_entry(entry, depth)
        else:
            self._blobs(blobs_of(document))
        self._target.put_manifest(descriptor, self._data.pop(descriptor.digest), name)

    def _copy_entry(self, entry: Descriptor, depth: int) -> None:
        if entry.digest in self._copied:
            return
        if entry.media_type in mediatypes.MANIFESTS | mediatypes.INDEXES:
            self.copy(entry, self.document(entry), None, depth + 1)
        else:
            self._blobs([entry])
        self._copied.add(entry.digest)

    def _blobs(self, descriptors: Iterable[Descriptor]) -> None:
        wanted = {d.digest: d for d in descriptors if d.digest not in self._copied}
        self._meter.expect(sum(descriptor.size for descriptor in wanted.values()))
        for descriptor in self._each(list(wanted.values())):
            self._copied.add(descriptor.digest)
            if self._report is not None:
                self._report(descriptor)

    def _each(self, descriptors: list[Descriptor]) -> Iterator[Descriptor]:
        """Copy blobs, several at once if asked to; yields each that is done."""
        if self._jobs <= 1 or len(descriptors) <= 1:
            yield from map(self._blob, descriptors)
            return
        from concurrent.futures import ThreadPoolExecutor, as_completed

        with ThreadPoolExecutor(self._jobs, "lamina-copy") as pool:
            futures = [pool.submit(self._blob, descriptor) for descriptor in descriptors]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                self._abort()
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _blob(self, descriptor: Descriptor) -> Descriptor:
        if self._target.has(descriptor):
            self._meter.add(descriptor.size)
            return descriptor
        with self._open(descriptor) as stream:
            self._target.put(descriptor, stream, reopen=partial(self._open, descriptor))
        return descriptor

    def _open(self, descriptor: Descriptor) -> BinaryIO:
        metered = cast(BinaryIO, _Metered(self._source.open(descriptor), self._meter))
        return verified(metered, descriptor)


class _Meter:
    """Bytes copied by several threads; how many there are shows as manifests are read."""

    def __init__(self, what: str, progress: ProgressCallback | None) -> None:
        self._what = what
        self._progress = progress
        self._done = self._total = 0
        self._lock = threading.Lock()

    def expect(self, count: int) -> None:
        with self._lock:
            self._total += count

    def add(self, count: int) -> None:
        with self._lock:
            self._done = min(self._done + count, self._total)
            if self._progress is not None:
                self._progress(Progress(self._what, self._done, self._total, "bytes"))


class _Metered:
    """A stream that tells what is read of it."""

    def __init__(self, stream: BinaryIO, meter: _Meter) -> None:
        self._stream = stream
        self._meter = meter
        self.close = stream.close

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._meter.add(len(data))
        return data


def blobs_of(manifest: Manifest) -> list[Descriptor]:
    """Configuration and layers, without those that may not be passed on and are had elsewhere.

    image-spec, layer.md, "Non-Distributable Layers".
    """
    layers = [
        layer
        for layer in manifest.layers
        if not (layer.urls and mediatypes.is_non_distributable(layer.media_type))
    ]
    return [manifest.config, *layers]
