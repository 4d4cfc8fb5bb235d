"""The overlay driver: a layer is a directory in overlayfs format, overlayfs stacks them.

    layers/ID/diff     the layer: files, devices 0:0 as whiteouts, opaque xattrs
    layers/ID/work     overlayfs's own, on the same file system
    layers/ID/merged   the mount point; missing where there is nothing to stack
    layers/ID/volatile there when the layer is throw-away

As root the markers are ``trusted.overlay.*``, in a user namespace ``user.overlay.*``.

The union is read-only once a layer has children: overlayfs leaves undefined what happens to
a mount when its lower directories change (Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from lamina.archive import changes as compare
from lamina.archive import fold, stack, whiteout
from lamina.archive.changes import Change
from lamina.archive.pack import pack
from lamina.archive.stream import open_chunks
from lamina.archive.tar import TarReader
from lamina.archive.unpack import Unpacked, UnpackOptions, unpack
from lamina.drivers import naive
from lamina.drivers.base import NO_OPTIONS, nearest_existing
from lamina.drivers.directory import DirectoryDriver
from lamina.drivers.layout import Chain
from lamina.drivers.overlaymount import Overlay, by_descriptor
from lamina.drivers.size import limit_size, parse_size
from lamina.errors import DriverUnsupported, LayerBroken, LayerInUse
from lamina.kernel import filesystems, namespaces, xattr
from lamina.kernel.idmap import IdMap
from lamina.kernel.mount import umount2
from lamina.kernel.mountinfo import is_mountpoint
from lamina.kernel.remove import remove_tree
from lamina.kernel.rename import exchange
from lamina.types import LayerId


class OverlayDriver(DirectoryDriver):
    """Layers as overlayfs directories. See the module and :class:`Driver`."""

    name = "overlay"
    layer_options = frozenset({"size", "volatile", "base"})

    def __init__(
        self,
        home: Path,
        run: Path,
        *,
        options: Mapping[str, str] = NO_OPTIONS,
        idmap: IdMap = IdMap(),
    ) -> None:
        super().__init__(home, run, options=options, idmap=idmap)
        self.userxattr = namespaces.in_user_namespace()
        self.format = whiteout.OVERLAY_USER if self.userxattr else whiteout.OVERLAY

    @classmethod
    def probe(cls, home: Path) -> None:
        """See :meth:`Driver.probe`. Mounts an overlay on ``home``'s file system for a moment."""
        if not filesystems.supported("overlay"):
            raise DriverUnsupported(cls.name, "the kernel has no overlayfs")
        if os.geteuid() != 0:
            why = "mounting takes root or a user namespace (try 'lamina unshare')"
            raise DriverUnsupported(cls.name, why)
        place = nearest_existing(home)
        try:
            _try_mount(place)
        except OSError as error:
            backing = filesystems.name(filesystems.magic(place))
            raise DriverUnsupported(cls.name, f"not on {backing} at {place}: {error}") from error

    # -- life ---------------------------------------------------------------------------

    def _furnish(self, staged: str, chain: Chain, options: Mapping[str, str]) -> None:
        if "size" in options:
            limit_size(staged, parse_size(options["size"]))
        self._make_top(f"{staged}/diff", chain)
        if chain:
            os.mkdir(f"{staged}/work", 0o700)
            os.mkdir(f"{staged}/merged", 0o700)
        if options.get("volatile", "false").lower() in ("true", "1", "yes"):
            os.close(os.open(f"{staged}/volatile", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    def _make_top(self, path: str, chain: Chain) -> None:
        """The layer's top directory looks like the one below it: a mount shows the topmost's."""
        os.mkdir(path, 0o755)
        mode, owner = 0o755, self.idmap.root
        if chain:
            below = os.stat(self._directories(chain)[0])
            mode, owner = below.st_mode & 0o7777, (below.st_uid, below.st_gid)
        if owner != (os.geteuid(), os.getegid()):
            os.chown(path, *owner)
        os.chmod(path, mode)

    def _directories(self, chain: Chain) -> list[str]:
        """The directories of a chain, nearest first."""
        base = [] if chain.base is None else [str(chain.base)]
        return [self.layout.path(id, "diff") for id in chain.layers] + base

    # -- mounts -------------------------------------------------------------------------

    def _mount(self, id: LayerId, mount_label: str) -> Path:
        chain = self.layout.chain(id)
        diff, merged = self.layout.path(id, "diff"), self._mountpoint(id)
        if not chain:
            return Path(diff)
        if is_mountpoint(merged):
            return Path(merged)
        self._check_chain(id, chain)
        lowers = self._directories(chain)
        if self.layout.has_children(id):
            Overlay([diff, *lowers], userxattr=self.userxattr, label=mount_label).mount(merged)
            return Path(merged)
        if self.references.taken_elsewhere(id):
            raise LayerInUse(id, "a process in another mount namespace has it mounted")
        volatile = os.path.exists(self.layout.path(id, "volatile"))
        if volatile:
            self._check_volatile(id)
        work = self.layout.path(id, "work")
        Overlay(lowers, diff, work, self.userxattr, volatile, mount_label).mount(merged)
        return Path(merged)

    def _check_chain(self, id: LayerId, chain: Chain) -> None:
        for parent in chain.layers:
            if not self.layout.exists(parent):
                raise LayerBroken(id, f"its parent {parent} is gone")
        if chain.base is not None and not chain.base.is_dir():
            raise LayerBroken(id, f"its base directory {chain.base} is gone")

    def _check_volatile(self, id: LayerId) -> None:
        """Let a throw-away layer be mounted again, unless the machine went down meanwhile.

        overlayfs leaves ``work/incompat/volatile`` behind and refuses to mount over it. The
        run directory is empty after a boot, so that a file there tells the two apart.
        """
        seen = f"{self.run}/{id}.volatile"
        left = self.layout.path(id, "work/work/incompat")
        if os.path.exists(left):
            if not os.path.exists(seen):
                raise LayerBroken(
                    id, "it is volatile, and the machine went down since its last use"
                )
            remove_tree(left)
        os.close(os.open(seen, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    # -- what is known ------------------------------------------------------------------

    def status(self) -> list[tuple[str, str]]:
        """See :meth:`Driver.status`."""
        api = "fsopen with descriptors" if by_descriptor() else "mount with short links"
        return [
            ("Root Dir", str(self.home)),
            ("Backing Filesystem", filesystems.name(filesystems.magic(self.home))),
            ("Layers", str(sum(1 for _ in self.ids()))),
            ("Mount API", api),
            ("Markers", "user.overlay" if self.userxattr else "trusted.overlay"),
        ]

    def metadata(self, id: LayerId) -> dict[str, str]:
        """See :meth:`Driver.metadata`. The keys are those of Docker's overlay2."""
        chain = self.layout.chain(id)
        facts = {"UpperDir": self.layout.path(id, "diff")}
        if chain:
            facts["LowerDir"] = ":".join(self._directories(chain))
            facts["WorkDir"] = self.layout.path(id, "work")
            facts["MergedDir"] = self._mountpoint(id)
        return facts

    # -- differences --------------------------------------------------------------------

    def _fill(
        self, staged: str, id: LayerId, reader: TarReader, options: UnpackOptions
    ) -> Unpacked:
        chain = self.layout.chain(id)
        self._make_top(f"{staged}/diff", chain)
        return unpack(
            reader,
            f"{staged}/diff",
            fmt=self.format,
            idmap=self.idmap,
            lowers=[Path(lower) for lower in self._directories(chain)],
            options=options,
        )

    def _settle(self, staged: str, id: LayerId) -> None:
        new, old = f"{staged}/diff", self.layout.path(id, "diff")
        try:
            os.rename(new, old)  # over an empty directory
        except OSError:
            fold.squash([new, old], self.format, f"{staged}/both")
            exchange(f"{staged}/both", old)

    def _split(self, id: LayerId, parent: LayerId | None) -> tuple[list[str], list[str]] | None:
        """The chain's directories above and below ``parent``; None if it is not in the chain."""
        below = self.layout.chain(id)
        chain = Chain((id, *below.layers), below.base)
        if parent is None:
            base = [] if below.base is None else [str(below.base)]
            return self._directories(Chain(chain.layers)), base
        self.layout.chain(parent)  # LayerNotFound
        if parent not in chain.layers:
            return None
        cut = chain.layers.index(parent)
        directories = self._directories(chain)
        return directories[:cut], directories[cut:]

    def diff(self, id: LayerId, parent: LayerId | None = None) -> BinaryIO:
        """See :meth:`Driver.diff`. Native against any layer of the chain, mounted or not."""
        release = self._hold(id)
        try:
            split = self._split(id, parent)
            if split is None:
                return naive.diff(self, id, parent, on_close=release)
            uppers, lowers = split
            chunks = pack(uppers, fmt=self.format, idmap=self.idmap, lowers=lowers)
        except BaseException:
            release()
            raise
        return open_chunks(chunks, release)

    def changes(self, id: LayerId, parent: LayerId | None = None) -> list[Change]:
        """See :meth:`Driver.changes`. Native against any layer of the chain, mounted or not."""
        split = self._split(id, parent)
        if split is None:
            return naive.changes(self, id, parent)
        return compare.changes_from_uppers(*split, self.format)

    def diff_size(self, id: LayerId, parent: LayerId | None = None) -> int:
        """See :meth:`Driver.diff_size`. Native against any layer of the chain, mounted or not."""
        split = self._split(id, parent)
        if split is None:
            return naive.diff_size(self, id, parent)
        return stack.size(stack.walk(split[0], self.format))


def _try_mount(place: Path) -> None:
    """Mount an overlay with a whiteout and an opaque mark in a new directory; leave nothing."""
    userxattr = namespaces.in_user_namespace()
    form = whiteout.OVERLAY_USER if userxattr else whiteout.OVERLAY
    top = tempfile.mkdtemp(prefix=".lamina-probe-", dir=place)
    try:
        for part in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{top}/{part}")
        fd = os.open(f"{top}/upper", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            form.write_whiteout(fd, b"gone")
            form.set_opaque(fd)
        except xattr.XattrUnsupported as error:
            raise OSError(error.errno, "it has no extended attributes for markers") from error
        finally:
            os.close(fd)
        spec = Overlay([f"{top}/lower"], f"{top}/upper", f"{top}/work", userxattr)
        spec.mount(f"{top}/merged")
        umount2(f"{top}/merged")
    finally:
        remove_tree(top)
