"""Differences by comparing two mounted trees: right for any two layers of any driver, and slow.

What Docker's graph drivers call NaiveDiffDriver. Drivers come here when the parent that they
are asked about is not in the layer's chain, or when they keep whole trees anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lamina.archive import changes as compare
from lamina.archive import fold, whiteout
from lamina.archive.changes import Change
from lamina.archive.difference import pack_difference, size_of_difference
from lamina.archive.pack import PackOptions, pack_tree
from lamina.archive.stack import size, walk
from lamina.archive.stream import open_chunks
from lamina.archive.tar import TarReader
from lamina.archive.unpack import Unpacked, UnpackOptions, unpack
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.drivers.base import Driver


# ``base`` is the directory that the chain of ``id`` stands on, which ``parent=None`` then means.


@contextmanager
def _both(
    driver: Driver, id: LayerId, parent: LayerId | None, base: Path | None
) -> Iterator[tuple[Path, Path | None]]:
    with ExitStack() as held:
        new = held.enter_context(driver.mounted(id))
        yield new, base if parent is None else held.enter_context(driver.mounted(parent))


def changes(
    driver: Driver, id: LayerId, parent: LayerId | None, *, base: Path | None = None
) -> list[Change]:
    """See :meth:`Driver.changes`."""
    with _both(driver, id, parent, base) as (new, old):
        return compare.changes_between(new, old)


def diff_size(
    driver: Driver, id: LayerId, parent: LayerId | None, *, base: Path | None = None
) -> int:
    """See :meth:`Driver.diff_size`."""
    with _both(driver, id, parent, base) as (new, old):
        if old is None:
            return size(walk([new], whiteout.PLAIN))
        return size_of_difference(new, old)


def diff(
    driver: Driver,
    id: LayerId,
    parent: LayerId | None,
    on_close: Callable[[], None] = lambda: None,
    *,
    base: Path | None = None,
    options: PackOptions | None = None,
) -> BinaryIO:
    """See :meth:`Driver.diff`. Both trees stay mounted until the stream is closed."""
    held = ExitStack()
    held.callback(on_close)
    try:
        new, old = held.enter_context(_both(driver, id, parent, base))
        if old is None:
            chunks = pack_tree(new, idmap=driver.idmap, options=options)
        else:
            chunks = pack_difference(new, old, idmap=driver.idmap, options=options)
    except BaseException:
        held.close()
        raise
    return open_chunks(chunks, held.close)


def apply(
    driver: Driver, id: LayerId, reader: TarReader, options: UnpackOptions, staged: str
) -> Unpacked:
    """See :meth:`Driver.apply`: unpacked in ``staged``, then folded into the mounted tree.

    A damaged archive leaves the layer as it was; a disk that gets full while folding may not.
    """
    with driver.mounted(id) as root:
        unpacked = unpack(
            reader,
            staged,
            fmt=whiteout.AUFS,
            idmap=driver.idmap,
            lowers=[root],
            options=options,
        )
        fold.fold([staged], whiteout.AUFS, root)
        return unpacked
