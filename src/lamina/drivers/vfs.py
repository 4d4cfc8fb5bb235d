"""The vfs driver: a layer is a full copy of its parent, changed. Works anywhere.

    layers/ID/diff     the whole tree

Nothing is mounted, so that no right is needed. A copy shares its data with the parent where
the file system has reflinks (btrfs, xfs). The other drivers are tested against this one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lamina.drivers.base import Mount, bind_mount
from lamina.drivers.directory import DirectoryDriver
from lamina.drivers.layout import Chain
from lamina.kernel import filesystems
from lamina.kernel.idmap import IdMap
from lamina.kernel.rename import exchange
from lamina.types import LayerId

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamina.archive.changes import Change
    from lamina.archive.pack import PackOptions
    from lamina.archive.tar import TarReader
    from lamina.archive.transplant import Foreign
    from lamina.archive.unpack import Unpacked, UnpackOptions


class VfsDriver(DirectoryDriver):
    """Layers as full copies. See the module and :class:`Driver`."""

    name = "vfs"
    layer_options = frozenset({"base"})

    @classmethod
    def probe(cls, home: Path, *, idmap: IdMap = IdMap()) -> None:
        """See :meth:`Driver.probe`: a directory is all it takes."""

    def _furnish(self, staged: str, chain: Chain, options: Mapping[str, str]) -> None:
        tree = f"{staged}/diff"
        below = self._below(chain)
        if below is not None:
            from lamina.archive.copytree import copy_tree

            copy_tree(below, tree)
            return
        os.mkdir(tree, 0o755)
        os.chmod(tree, 0o755)
        if os.geteuid() == 0 and self.idmap.root != (0, os.getegid()):
            os.chown(tree, *self.idmap.root)  # others own all that they make (archive.owners)

    def _below(self, chain: Chain) -> str | None:
        if chain.layers:
            return self.layout.path(chain.layers[0], "diff")
        return None if chain.base is None else str(chain.base)

    def _mount(self, id: LayerId, mount_label: str) -> Path:
        self.layout.chain(id)  # LayerNotFound
        return Path(self.layout.path(id, "diff"))

    def mounts(self, id: LayerId, *, readonly: bool = False) -> list[Mount]:
        """See :meth:`Driver.mounts`: the layer is a whole tree already."""
        self.layout.chain(id)  # LayerNotFound
        readonly = readonly or self.layout.has_children(id)
        return [bind_mount(self.layout.path(id, "diff"), readonly=readonly)]

    def release_mounts(self, id: LayerId) -> bool:
        """See :meth:`Driver.release_mounts`: nothing is kept."""
        return True

    def status(self) -> list[tuple[str, str]]:
        """See :meth:`Driver.status`."""
        return [
            ("Root Dir", str(self.home)),
            ("Backing Filesystem", filesystems.name(filesystems.magic(self.home))),
            ("Layers", str(sum(1 for _ in self.ids()))),
        ]

    def metadata(self, id: LayerId) -> dict[str, str]:
        """See :meth:`Driver.metadata`."""
        self.layout.chain(id)
        return {"Dir": self.layout.path(id, "diff")}

    staged_part = "layer"

    def _directories(self, chain: Chain) -> list[str]:
        below = self._below(chain)
        return [] if below is None else [below]

    def _lowers_to_fill(self, id: LayerId, chain: Chain) -> list[Path]:
        return [Path(self.layout.path(id, "diff"))]

    def _unpack(
        self,
        staged: str,
        reader: TarReader,
        lowers: Callable[[], list[Path]],
        options: UnpackOptions,
    ) -> Unpacked:
        from lamina.archive import whiteout
        from lamina.archive.unpack import unpack

        layer = f"{staged}/layer"
        os.mkdir(layer, 0o755)
        return unpack(
            reader, layer, fmt=whiteout.STAGED, idmap=self.idmap, lowers=lowers, options=options
        )

    def _complete(self, staged: str, id: LayerId) -> None:
        from lamina.archive import whiteout
        from lamina.archive.copytree import copy_tree
        from lamina.archive.fold import fold

        tree = f"{staged}/diff"
        copy_tree(self.layout.path(id, "diff"), tree)
        fold([f"{staged}/layer"], whiteout.STAGED, tree, move=True)

    def _copy(
        self,
        staged: str,
        id: LayerId,
        layer: Foreign,
        progress: Callable[[int], None] | None,
    ) -> int:
        from lamina.archive import stack
        from lamina.archive.copytree import copy_tree
        from lamina.archive.fold import fold

        tree = f"{staged}/diff"
        copy_tree(self.layout.path(id, "diff"), tree, progress=progress)
        fold([layer.directory], layer.view, tree, progress=progress)
        return stack.size(stack.walk([layer.directory], layer.view))

    def _settle(self, staged: str, id: LayerId) -> None:
        exchange(f"{staged}/diff", self.layout.path(id, "diff"))

    def diff(
        self, id: LayerId, parent: LayerId | None = None, *, options: PackOptions | None = None
    ) -> BinaryIO:
        """See :meth:`Driver.diff`."""
        from lamina.drivers import naive

        return naive.diff(self, id, parent, base=self.layout.chain(id).base, options=options)

    def changes(self, id: LayerId, parent: LayerId | None = None) -> list[Change]:
        """See :meth:`Driver.changes`."""
        from lamina.drivers import naive

        return naive.changes(self, id, parent, base=self.layout.chain(id).base)

    def diff_size(self, id: LayerId, parent: LayerId | None = None) -> int:
        """See :meth:`Driver.diff_size`."""
        from lamina.drivers import naive

        return naive.diff_size(self, id, parent, base=self.layout.chain(id).base)
