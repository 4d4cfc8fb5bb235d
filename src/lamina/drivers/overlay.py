"""The overlay driver: a layer is a directory in overlayfs format, overlayfs stacks them.

    layers/ID/diff     the layer: files, devices 0:0 as whiteouts, opaque xattrs
    layers/ID/work     overlayfs's own, on the same file system
    layers/ID/merged   the mount point; missing where there is nothing to stack
    layers/ID/volatile there when the layer is throw-away
    layers/ID/project  the number of the project whose quota limits the layer, if one does

As root the markers are ``trusted.overlay.*``, in a user namespace ``user.overlay.*``.

The union is read-only once a layer has children: overlayfs leaves undefined what happens to
a mount when its lower directories change (Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.drivers.base import NO_OPTIONS, Mount, bind_mount, nearest_existing
from lamina.drivers.layout import Chain
from lamina.drivers.overlaymount import Overlay, by_descriptor
from lamina.drivers.stacking import StackingDriver
from lamina.errors import DriverUnsupported, LayerBroken, LayerInUse
from lamina.kernel import filesystems, namespaces, xattr
from lamina.kernel.idmap import IdMap
from lamina.kernel.mount import umount2
from lamina.kernel.mountinfo import is_mountpoint
from lamina.kernel.remove import remove_tree
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.archive.whiteout import Format


class OverlayDriver(StackingDriver):
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

    @classmethod
    def probe(cls, home: Path, *, idmap: IdMap = IdMap()) -> None:
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
            from lamina.drivers.size import limit_size, parse_size

            project = limit_size(staged, parse_size(options["size"]))
            Path(staged, "project").write_text(str(project))
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
            mode, user, group = self._top_below(chain)
            owner = user, group
        if owner != (os.geteuid(), os.getegid()):
            os.chown(path, *owner)
        os.chmod(path, mode)

    def _top_below(self, chain: Chain) -> tuple[int, int, int]:
        """Permissions, user and group of the topmost layer's top, or the base's."""
        with self._trees(Chain(chain.layers[:1]) if chain.layers else chain) as trees:
            found = os.stat(trees[0])
        return found.st_mode & 0o7777, found.st_uid, found.st_gid

    def _format(self) -> Format:
        return _format(self.userxattr)

    # -- mounts -------------------------------------------------------------------------

    def _mount(self, id: LayerId, mount_label: str) -> Path:
        chain = self.layout.chain(id)
        diff, merged = self.layout.path(id, "diff"), self._mountpoint(id)
        if not chain:
            return Path(diff)
        if is_mountpoint(merged):
            return Path(merged)
        self._check_chain(id, chain)
        if self.layout.has_children(id):
            with self._trees(chain) as lowers:
                Overlay([diff, *lowers], userxattr=self.userxattr, label=mount_label).mount(merged)
            return Path(merged)
        if self.references.taken_elsewhere(id):
            raise LayerInUse(id, "a process in another mount namespace has it mounted")
        volatile = os.path.exists(self.layout.path(id, "volatile"))
        if volatile:
            self._check_volatile(id)
        work = self.layout.path(id, "work")
        with self._trees(chain) as lowers:
            Overlay(lowers, diff, work, self.userxattr, volatile, mount_label).mount(merged)
        return Path(merged)

    def mounts(self, id: LayerId, *, readonly: bool = False) -> list[Mount]:
        """See :meth:`Driver.mounts`: the client's own overlay, or a bind where there is no chain.

        Nothing is mounted here. Paths of one store share all but their last two parts, which
        clients use to fit many of them into the page that mount(2) has.
        """
        chain = self.layout.chain(id)
        diff = self.layout.path(id, "diff")
        readonly = readonly or self.layout.has_children(id)
        if not chain:
            return [bind_mount(diff, readonly=readonly)]
        self._check_chain(id, chain)
        lowers = self._directories(chain)
        work = self.layout.path(id, "work")
        spec = (
            Overlay([diff, *lowers], userxattr=self.userxattr)
            if readonly
            else Overlay(lowers, diff, work, self.userxattr)
        )
        return [Mount("overlay", "overlay", spec.options())]

    def release_mounts(self, id: LayerId) -> bool:
        """See :meth:`Driver.release_mounts`: nothing is kept."""
        return True

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
        seen = self._volatile_mark(id)
        left = self.layout.path(id, "work/work/incompat")
        if os.path.exists(left):
            if not os.path.exists(seen):
                raise LayerBroken(
                    id, "it is volatile, and the machine went down since its last use"
                )
            remove_tree(left)
        os.close(os.open(seen, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    def remove(self, id: LayerId, *, pins: bool = False) -> None:
        """See :meth:`Driver.remove`."""
        project = self._project(id)
        super().remove(id, pins=pins)
        if project is not None:
            from lamina.drivers.size import lift_limit

            lift_limit(self.home, project)
        try:
            os.unlink(self._volatile_mark(id))
        except FileNotFoundError:
            pass

    def _project(self, id: LayerId) -> int | None:
        """The project that limits the layer's size, if one does."""
        try:
            with open(self.layout.path(id, "project")) as file:
                return int(file.read())
        except FileNotFoundError:
            return None

    def _volatile_mark(self, id: LayerId) -> str:
        return f"{self.run}/{id}.volatile"

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


def _format(userxattr: bool) -> Format:
    from lamina.archive import whiteout

    return whiteout.OVERLAY_USER if userxattr else whiteout.OVERLAY


def _try_mount(place: Path) -> None:
    """Mount an overlay with a whiteout and an opaque mark in a new directory; leave nothing."""
    import tempfile

    userxattr = namespaces.in_user_namespace()
    form = _format(userxattr)
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
