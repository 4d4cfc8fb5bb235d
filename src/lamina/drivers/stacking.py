"""What the drivers share that stack layer directories: a layer's changes are read off its own.

Packing, unpacking and comparing are imported in the methods that do them: see drivers.base.
"""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lamina.drivers.directory import DirectoryDriver
from lamina.drivers.layout import Chain
from lamina.kernel.rename import exchange
from lamina.types import LayerId

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamina.archive.changes import Change
    from lamina.archive.pack import PackOptions
    from lamina.archive.tar import TarReader
    from lamina.archive.transplant import Foreign
    from lamina.archive.unpack import Unpacked, UnpackOptions
    from lamina.archive.whiteout import Format, View


class StackingDriver(DirectoryDriver):
    """Differences are native against any layer of the chain, mounted or not."""

    @abstractmethod
    def _format(self) -> Format:
        """How a layer's whiteouts are written."""

    def _view(self, id: LayerId) -> View:
        """How the layer's directory is to be read now."""
        return self._format()

    @abstractmethod
    def _make_top(self, path: str, chain: Chain) -> None:
        """Make the top directory of a new layer on ``chain``."""

    def _directories(self, chain: Chain) -> list[str]:
        """The directories of a chain, nearest first."""
        base = [] if chain.base is None else [str(chain.base)]
        return [self.layout.path(id, "diff") for id in chain.layers] + base

    def _lowers_to_fill(self, id: LayerId, chain: Chain) -> list[Path]:
        own = self.layout.path(id, "diff")
        return [Path(own)] * bool(os.listdir(own)) + super()._lowers_to_fill(id, chain)

    def _unpack(
        self,
        staged: str,
        reader: TarReader,
        lowers: Callable[[], list[Path]],
        options: UnpackOptions,
    ) -> Unpacked:
        from lamina.archive.unpack import unpack

        self._make_top(f"{staged}/diff", Chain())  # like the one below when it is complete
        return unpack(
            reader,
            f"{staged}/diff",
            fmt=self._format(),
            idmap=self.idmap,
            lowers=lowers,
            options=options,
        )

    def _copy(
        self,
        staged: str,
        id: LayerId,
        layer: Foreign,
        progress: Callable[[int], None] | None,
    ) -> int:
        from lamina.archive.transplant import transplant

        self._make_top(f"{staged}/diff", self.layout.chain(id))
        return transplant(layer, f"{staged}/diff", self._format(), progress=progress)

    def _settle(self, staged: str, id: LayerId) -> None:
        new, old = f"{staged}/diff", self.layout.path(id, "diff")
        try:
            os.rename(new, old)  # over an empty directory
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._squash([new, old], id, f"{staged}/both")
            exchange(f"{staged}/both", old)

    def _squash(self, layers: list[str], id: LayerId, target: str) -> None:
        """Make one layer directory of several that stand on what the layer ``id`` stands on."""
        from lamina.archive.fold import squash

        with self._trees(self.layout.chain(id)) as below:
            squash(layers, self._format(), target, lowers=[Path(path) for path in below])

    @contextmanager
    def _trees(self, chain: Chain, *, bottom: bool = True) -> Iterator[list[str]]:
        """Directories that show a chain's tree, nearest first; they are there within the block.

        Without ``bottom`` the chain stands on further layers, which its marks are about.
        """
        yield self._directories(chain)

    def _split(self, id: LayerId, parent: LayerId | None) -> tuple[Chain, Chain] | None:
        """The layer's chain above and below ``parent``; None if that is not in the chain."""
        below = self.layout.chain(id)
        chain = (id, *below.layers)
        if parent is None:
            return Chain(chain), Chain(base=below.base)
        self.layout.chain(parent)  # LayerNotFound
        if parent not in chain:
            return None
        cut = chain.index(parent)
        return Chain(chain[:cut]), Chain(chain[cut:], below.base)

    def _lowers_to_pack(self, uppers: list[str], lowers: list[str]) -> list[str] | None:
        """Where to look which marks hide something; None keeps them all."""
        return lowers

    def diff(
        self, id: LayerId, parent: LayerId | None = None, *, options: PackOptions | None = None
    ) -> BinaryIO:
        """See :meth:`Driver.diff`."""
        from lamina.archive.pack import pack
        from lamina.archive.stream import open_chunks
        from lamina.drivers import naive

        held = ExitStack()
        held.callback(self._hold(id))
        try:
            split = self._split(id, parent)
            if split is None:
                return naive.diff(self, id, parent, on_close=held.close, options=options)
            uppers = held.enter_context(self._trees(split[0], bottom=False))
            lowers = held.enter_context(self._trees(split[1]))
            below = self._lowers_to_pack(uppers, lowers)
            view = self._view(id)
            chunks = pack(uppers, fmt=view, idmap=self.idmap, lowers=below, options=options)
        except BaseException:
            held.close()
            raise
        return open_chunks(chunks, held.close)

    def changes(self, id: LayerId, parent: LayerId | None = None) -> list[Change]:
        """See :meth:`Driver.changes`."""
        from lamina.archive.changes import changes_from_uppers
        from lamina.drivers import naive

        split = self._split(id, parent)
        if split is None:
            return naive.changes(self, id, parent)
        above, below = split
        with (
            self._there(id),
            self._trees(above, bottom=False) as uppers,
            self._trees(below) as lowers,
        ):
            return changes_from_uppers(uppers, lowers, self._view(id))

    def diff_size(self, id: LayerId, parent: LayerId | None = None) -> int:
        """See :meth:`Driver.diff_size`."""
        from lamina.archive import stack
        from lamina.drivers import naive

        split = self._split(id, parent)
        if split is None:
            return naive.diff_size(self, id, parent)
        with self._there(id), self._trees(split[0], bottom=False) as uppers:
            return stack.size(stack.walk(uppers, self._view(id)))
