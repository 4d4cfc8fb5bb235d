"""The layers of an image, unpacked side by side.

Each layer has a place of its own in the driver's staging, whatever has become of the one below
it; what it needs to know of that (rarely much) it waits for. Where blobs come over a network, one
is unpacked while it is still coming, and others come meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from lamina.drivers.base import Staged
from lamina.errors import DigestMismatch, InvalidArchive, InvalidImage
from lamina.log import Log
from lamina.oci.content import Source
from lamina.oci.descriptor import Descriptor
from lamina.progress import Progress, ProgressCallback
from lamina.store.core import Core
from lamina.store.splits import recording
from lamina.store.transfer.blobs import layer_tar
from lamina.store.transfer.downloads import Download, Downloads
from lamina.store.transfer.resolving import Part
from lamina.store.transfer.stopping import Stop, Stopped, Watched, results
from lamina.store.transfer.writeback import written_early
from lamina.types import Digest, LayerId

log = Log(__name__)
T = TypeVar("T")

DOWNLOADS = 6
"""Blobs that are fetched at once (as podman; docker: 3)."""

_UNPACKERS = 4


@dataclass
class Arrival:
    """A layer that was unpacked, and what is to be kept of it."""

    part: Part
    staged: Staged
    split: Path
    tar_size: int
    fetched: Fetching | None
    """The blob, where it was fetched."""


class Stager:
    """Unpacks some layers of an image, ``parts``, on the layer ``below``; a context manager.

    What was unpacked is there until the block ends.
    """

    def __init__(
        self,
        core: Core,
        source: Source,
        parts: Sequence[Part],
        below: LayerId | None,
        *,
        fetch: bool,
        what: str,
        progress: ProgressCallback | None,
        abort: Callable[[], None],
    ) -> None:
        self._core = core
        self._source = source
        self._parts = parts
        self._below = below
        self._downloads = Downloads(core.root / "downloads") if fetch else None
        self._stop = Stop()
        self._abort = abort
        self._meter = _Meter(what, sum(part.descriptor.size for part in parts), progress)
        self._stack = ExitStack()
        self._mutex = threading.Lock()
        self._arrivals: list[Future[Arrival]] = []
        self._fetching: dict[Digest, Fetching] = {}

    @contextmanager
    def run(self) -> Iterator[list[Arrival]]:
        """All layers, bottom first. Raises what the first that failed did."""
        with self._stack:
            yield self._all()

    def _all(self) -> list[Arrival]:
        if self._parts:
            self._meter.report()  # that it begins
        workers = min(_UNPACKERS, len(os.sched_getaffinity(0)) + 1, len(self._parts))
        with (
            written_early(self._core),
            ThreadPoolExecutor(DOWNLOADS, "lamina-fetch") as fetchers,
            ThreadPoolExecutor(max(workers, 1), "lamina-unpack") as unpackers,
        ):
            # From the bottom: whoever waits for a lower layer knows that it is under way.
            for number in range(len(self._parts)):
                blob = self._blob(number, fetchers)
                self._arrivals.append(unpackers.submit(self._unpack, number, blob))

            def end() -> None:
                self._stop.set()
                self._abort()
                fetchers.shutdown(wait=False, cancel_futures=True)
                unpackers.shutdown(wait=False, cancel_futures=True)

            return results(self._arrivals, report=self._meter.report, end=end)

    # -- one layer

    def _blob(self, number: int, fetchers: ThreadPoolExecutor) -> Fetching | None:
        if self._downloads is None:
            return None
        descriptor = self._parts[number].descriptor
        fetching = self._fetching.get(descriptor.digest)
        if fetching is None:  # an image may have one blob several times
            fetching = Fetching(self._source, descriptor, self._downloads, self._stop)
            self._fetching[descriptor.digest] = fetching
            self._stack.callback(fetching.close)
            fetchers.submit(fetching.run)
        return fetching

    def _unpack(self, number: int, fetching: Fetching | None) -> Arrival:
        part = self._parts[number]
        try:
            blob = self._source.open(part.descriptor) if fetching is None else fetching.open()
            with Watched(blob, part.descriptor.size, self._stop, self._meter.add) as watched:
                return self._unpack_blob(number, part, watched, fetching)
        except (InvalidArchive, InvalidImage, DigestMismatch) as error:
            if fetching is not None:
                fetching.remove()  # the next try begins anew
            error.add_note(f"layer {number + 1} of {len(self._parts)}, {part.descriptor}")
            raise

    def _unpack_blob(
        self, number: int, part: Part, blob: Watched, fetching: Fetching | None
    ) -> Arrival:
        from lamina.archive.unpack import UnpackOptions

        split = self._enter(self._core.leases.path())
        with (
            layer_tar(cast(BinaryIO, blob), part) as tar,
            recording(split, self._core.driver) as recorder,
        ):
            staged = self._enter(
                self._core.driver.stage(
                    cast(BinaryIO, tar),
                    lambda: self._under(number),
                    observer=recorder,
                    options=UnpackOptions(on_superseded=recorder.superseded if recorder else None),
                )
            )
        return Arrival(part, staged, split, tar.size, fetching)

    def _under(self, number: int) -> Staged | LayerId | None:
        """What a layer stands on; waits for it. What failed there is not this layer's error."""
        if not number:
            return self._below
        lower = self._arrivals[number - 1]
        if (error := lower.exception()) is not None:
            raise Stopped from error
        return lower.result().staged

    def _enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context until all is done; several threads may be at it."""
        value = context.__enter__()
        with self._mutex:
            self._stack.push(context)
        return value


class Fetching:
    """A blob on its way into its file, from whatever an earlier try has left of it."""

    def __init__(
        self, source: Source, descriptor: Descriptor, downloads: Downloads, stop: Stop
    ) -> None:
        self._source = source
        self._descriptor = descriptor
        self._downloads = downloads
        self._stop = stop
        self._begun: Future[Download] = Future()

    def run(self) -> None:
        """Fetch it. An error is told by who reads."""
        try:
            with self._downloads.claim(self._descriptor, self._stop) as path:
                download = Download(path, self._descriptor, self._stop)
                self._begun.set_result(download)
                download.run(self._source)
        except BaseException as error:
            if not self._begun.done():
                self._begun.set_exception(error)
            log.debug("fetching %s: %s", self._descriptor.digest, error)

    def open(self) -> BinaryIO:
        """The blob, as it comes."""
        while True:
            try:
                return self._begun.result(timeout=0.2).open()
            except TimeoutError:
                self._stop.check()

    def remove(self) -> None:
        """Delete the file: its layer is in the store, or it is not what it should be."""
        if (download := self._download()) is not None:
            self._downloads.remove(download)

    def close(self) -> None:
        """Close the file, which stays."""
        if (download := self._download()) is not None:
            download.close()

    def _download(self) -> Download | None:
        begun = self._begun.done() and self._begun.exception() is None
        return self._begun.result() if begun else None


class _Meter:
    """Bytes read by several threads, reported by one."""

    def __init__(self, what: str, total: int, progress: ProgressCallback | None) -> None:
        self._what = what
        self._total = total
        self._progress = progress
        self._done = 0
        self._mutex = threading.Lock()

    def add(self, count: int) -> None:
        with self._mutex:
            self._done += count

    def report(self) -> None:
        if self._progress is not None:
            self._progress(Progress(self._what, min(self._done, self._total), self._total, "bytes"))
