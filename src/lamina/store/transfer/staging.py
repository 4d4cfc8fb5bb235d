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
from lamina.oci import mediatypes
from lamina.oci.content import Source
from lamina.oci.descriptor import Descriptor
from lamina.oci.digest import parts
from lamina.progress import Progress, ProgressCallback
from lamina.store.core import Core
from lamina.store.splits import recording
from lamina.store.transfer.downloads import Download, Downloads
from lamina.store.transfer.resolving import Part
from lamina.store.transfer.stopping import Stop, Watched, results
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
    blob: Path | None
    """The blob's file, where it was fetched."""


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
                fetching.reject()
            error.add_note(f"layer {number + 1} of {len(self._parts)}, {part.descriptor}")
            raise

    def _unpack_blob(
        self, number: int, part: Part, blob: Watched, fetching: Fetching | None
    ) -> Arrival:
        from lamina.archive.compression import open_stream
        from lamina.archive.unpack import UnpackOptions

        algorithm, _ = parts(part.descriptor.digest)
        split = self._enter(self._core.leases.path())
        with open_stream(cast(BinaryIO, blob), digest=algorithm, trailing="refuse") as tar:
            _check_compression(part.descriptor, tar.compression)
            with recording(split, self._core.driver) as recorder:
                staged = self._enter(
                    self._core.driver.stage(
                        cast(BinaryIO, tar),
                        lambda: self._under(number),
                        observer=recorder,
                        options=UnpackOptions(
                            on_superseded=recorder.superseded if recorder else None
                        ),
                    )
                )
            if tar.compressed_size != part.descriptor.size:
                raise InvalidImage(
                    f"blob {part.descriptor.digest} has "
                    f"{'more' if tar.compressed_size > part.descriptor.size else 'less'} than the "
                    f"{part.descriptor.size} bytes that it is said to have"
                )
            _check("blob", part.descriptor.digest, tar.digest)
            _check(f"tar in blob {part.descriptor.digest}", part.diff_id, tar.diff_id)
            path = None if fetching is None else fetching.path
            return Arrival(part, staged, split, tar.size, path)

    def _under(self, number: int) -> Staged | LayerId | None:
        """What a layer stands on; waits for it."""
        return self._arrivals[number - 1].result().staged if number else self._below

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
        self._stack = ExitStack()
        self._begun: Future[Download] = Future()

    def run(self) -> None:
        """Fetch it. An error is told by who reads."""
        try:
            path = self._stack.enter_context(self._downloads.claim(self._descriptor, self._stop))
            download = Download(path, self._descriptor, self._stop)
            self._stack.callback(download.close)
        except BaseException as error:
            self._begun.set_exception(error)
            return
        self._begun.set_result(download)
        try:
            download.run(self._source)
        except Exception as error:
            log.debug("fetching %s: %s", self._descriptor.digest, error)

    def open(self) -> BinaryIO:
        """The blob, as it comes."""
        while True:
            try:
                return self._begun.result(timeout=0.2).open()
            except TimeoutError:
                self._stop.check()

    @property
    def path(self) -> Path:
        """The blob's file."""
        return self._begun.result().path

    def reject(self) -> None:
        """It is not what it should be: the next try begins anew."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let other processes have it."""
        self._stack.close()


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


def _check(what: str, expected: str, actual: str) -> None:
    if actual != expected:
        raise DigestMismatch(what, expected, actual)


def _check_compression(descriptor: Descriptor, found: str) -> None:
    said = mediatypes.layer_compression(descriptor.media_type)
    if found != said:
        raise InvalidImage(
            f"blob {descriptor.digest} is said to be {descriptor.media_type}, "
            f"but its compression is {found}"
        )
