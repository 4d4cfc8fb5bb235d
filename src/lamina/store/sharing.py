"""Equal files in several layers: how many there are, and letting them share blocks.

Two files are compared by size first, and by SHA-256 only where another one has the same size. What
is shared is whole blocks of the file system (reflink; xfs and btrfs): of files in directories, and
of tars that are equal as a whole, all of them; of files in tars, which begin at multiples of 512
bytes, those that begin at the same place in a block, and of them the blocks that are nothing but
theirs. On btrfs nothing is shared of those: an extent there takes its room until nothing of it is
used any more, and those of tars go across many files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from lamina.drivers.base import Content
from lamina.errors import LayerNotFound, StoreError
from lamina.kernel import filesystems
from lamina.kernel.copy import dedupe_range
from lamina.progress import Progress, ProgressCallback
from lamina.store.core import Core
from lamina.store.layers import Layers
from lamina.types import LayerId

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Sharing:
    """Equal files in several layers of images."""

    files: int
    """Different contents that several layers have."""
    copies: int
    """How often they are there beyond the first time."""
    size: int
    """Bytes of these copies."""
    sharable: int
    """Bytes of them that :meth:`Store.dedup` could let share blocks, on a file system that can."""


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """``size``: bytes that share blocks with equal ones now, or did so before."""

    files: int
    size: int


class _Place(NamedTuple):
    layer: LayerId
    content: Content


class _Run(NamedTuple):
    """A range of whole blocks in a file, or one that ends with the file."""

    file: str
    offset: int
    length: int


def sharing(core: Core, progress: ProgressCallback | None) -> Sharing:
    """See :meth:`Store.sharing`."""
    blocks = _Blocks(core)
    files = copies = size = sharable = 0
    for places in _equal(core, progress, whole=False):
        if len({place.layer for place in places}) < 2:
            continue
        files += 1
        copies += len(places) - 1
        size += (len(places) - 1) * places[0].content.size
        for runs in blocks.classes(places):
            sharable += sum(run.length for run in runs[1:])
    return Sharing(files, copies, size, sharable)


def dedup(core: Core, progress: ProgressCallback | None) -> Deduplicated:
    """See :meth:`Store.dedup`."""
    _require_reflinks(core)
    blocks = _Blocks(core)
    files = size = 0
    for places in _equal(core, progress, whole=True):
        for first, *others in blocks.classes(places):
            for other in others:
                with suppress(FileNotFoundError):  # removed by another process
                    shared = _share(first, other)
                    files += shared > 0
                    size += shared
    return Deduplicated(files, size)


def _require_reflinks(core: Core) -> None:
    """Raise :class:`StoreError` where files can't share blocks; tried with two small ones."""
    staging = core.root / "staging"
    with tempfile.TemporaryFile(dir=staging) as one, tempfile.TemporaryFile(dir=staging) as two:
        length = os.statvfs(staging).f_bsize
        for file in (one, two):
            file.write(b"x" * length)
            file.flush()
        try:
            dedupe_range(one.fileno(), 0, length, two.fileno(), 0)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
                raise
            name = filesystems.name(filesystems.magic(core.root))
            raise StoreError(
                f"files on {name} can't share blocks ({core.root}): that takes xfs or btrfs"
            ) from None


def _share(source: _Run, target: _Run) -> int:
    with open(source.file, "rb") as one, open(target.file, "rb") as two:
        return dedupe_range(one.fileno(), source.offset, source.length, two.fileno(), target.offset)


# -- finding


def _equal(core: Core, progress: ProgressCallback | None, *, whole: bool) -> Iterator[list[_Place]]:
    """Groups of equal contents in image layers, the largest first; ``whole``: of tars too."""
    by_size: dict[int, list[_Place]] = defaultdict(list)
    for place in _places(core):
        if place.content.name or whole:
            by_size[place.content.size].append(place)
    candidates = {size: places for size, places in by_size.items() if len(places) > 1}
    total, done = sum(size * len(places) for size, places in candidates.items()), 0
    for size in sorted(candidates, reverse=True):
        by_digest: dict[bytes, list[_Place]] = defaultdict(list)
        for place in candidates.pop(size):
            digest = _digest(place.content)
            if digest is not None:
                by_digest[digest].append(place)
            done += size
            if progress is not None:
                progress(Progress("comparing files", done, total, "bytes"))
        yield from (places for places in by_digest.values() if len(places) > 1)


def _places(core: Core) -> Iterator[_Place]:
    for layer in Layers(core):
        driver = core.driver_named(layer.driver)
        if layer.kind != "image":
            continue
        with suppress(LayerNotFound):  # removed by another process
            if driver.elsewhere(layer.id) is None:
                for content in driver.contents(layer.id):
                    yield _Place(layer.id, content)


def _digest(content: Content) -> bytes | None:
    """SHA-256; None where the file is gone."""
    digest, left = hashlib.sha256(), content.size
    try:
        with open(content.file, "rb", buffering=0) as file:
            file.seek(content.offset)
            while left and (data := file.read(min(left, _PIECE))):
                digest.update(data)
                left -= len(data)
    except FileNotFoundError:
        return None
    return digest.digest()


# -- blocks


class _Blocks:
    """What of contents can be shared on the file system of a store."""

    def __init__(self, core: Core) -> None:
        self._size = os.statvfs(core.root).f_bsize
        self._parts = filesystems.name(filesystems.magic(core.root)) != "btrfs"

    def classes(self, places: Sequence[_Place]) -> Iterator[list[_Run]]:
        """The ranges of equal contents that can share blocks with one another, two or more."""
        classes: dict[int, list[_Run]] = defaultdict(list)
        for place in places:
            run = self._run(place.content)
            if run is not None:
                classes[place.content.offset % self._size].append(run)
        yield from (runs for runs in classes.values() if len(runs) > 1)

    def _run(self, content: Content) -> _Run | None:
        """All of a content that is a file; else the blocks that are nothing but its own."""
        if not content.offset and _is_whole(content):
            return _Run(content.file, 0, content.size)
        start = -(-content.offset // self._size) * self._size
        end = (content.offset + content.size) // self._size * self._size
        return _Run(content.file, start, end - start) if self._parts and start < end else None


def _is_whole(content: Content) -> bool:
    try:
        return os.stat(content.file).st_size == content.size
    except FileNotFoundError:
        return False
