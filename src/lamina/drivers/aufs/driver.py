"""The AUFS driver: what Docker's driver of that name did up to Docker 23, on any kernel.

The layout on disk and the format of whiteouts are Docker's (drivers.aufs.layout), so that a
store that Docker wrote is read as it is, and one that is written here can be taken to a machine
with AUFS. The union is made by the kernel, or else by fuse-overlayfs (drivers.aufs.engines);
option ``engine=kernel`` or ``engine=fuse`` insists on one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.drivers.aufs.engines import FuseEngine, KernelEngine, Union, choose, dirperm1
from lamina.drivers.aufs.layout import AufsLayout, make_directory
from lamina.drivers.base import NO_OPTIONS, missing_elsewhere, nearest_existing
from lamina.drivers.layout import Chain
from lamina.drivers.stacking import StackingDriver
from lamina.errors import DriverUnsupported, LayerBroken, LayerInUse
from lamina.kernel import filesystems
from lamina.kernel.idmap import IdMap
from lamina.kernel.mount import MNT_DETACH, ensure_mountpoint_private, umount2
from lamina.kernel.mountinfo import is_mountpoint, mounts, mounts_below
from lamina.log import Log
from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.archive.whiteout import Format, View

log = Log(__name__)

_INCOMPATIBLE = frozenset(
    {filesystems.MAGIC_AUFS, filesystems.MAGIC_BTRFS, filesystems.MAGIC_ECRYPTFS}
)


class AufsDriver(StackingDriver):
    """Layers as AUFS branches in Docker's layout. See the module and :class:`Driver`."""

    name = "aufs"
    known_options = frozenset({"engine"})
    image_options = frozenset({"branch"})
    layout: AufsLayout

    def __init__(
        self,
        home: Path,
        run: Path,
        *,
        options: Mapping[str, str] = NO_OPTIONS,
        idmap: IdMap = IdMap(),
    ) -> None:
        work = f"{home}/work"
        self.engine, self._why = choose(options.get("engine"), work, str(run))
        self.backing = _check_backing(home)
        super().__init__(home, run, options=options, idmap=idmap)

    def _make_layout(self) -> AufsLayout:
        layout = AufsLayout(self.home, self.idmap.root)
        if os.geteuid() == 0:
            ensure_mountpoint_private(self.home)
        layout.sweep()
        return layout

    @classmethod
    def probe(cls, home: Path, *, idmap: IdMap = IdMap()) -> None:
        """See :meth:`Driver.probe`."""
        choose(None, f"{home}/work", "")
        _check_backing(home)

    def close(self) -> None:
        """See :meth:`Driver.close`. The home stays a mount point while unions stand below it."""
        if is_mountpoint(self.home) and not mounts_below(self.home):
            try:
                umount2(self.home)
            except OSError as error:
                log.debug("can't unmount %s: %s", self.home, error)

    def cleanup(self, *, pins: bool = False) -> None:
        """See :meth:`Driver.cleanup`."""
        super().cleanup(pins=pins)
        self.close()

    def strays(self) -> Iterator[LayerId]:
        """See :meth:`Driver.strays`: branches and mount points without a list of parents."""
        return self.layout.strays()

    # -- life ---------------------------------------------------------------------------

    def _furnish(self, staged: str, chain: Chain, options: Mapping[str, str]) -> None:
        if "branch" in options:  # a branch that someone else keeps, read where it lies
            os.symlink(options["branch"], f"{staged}/diff")
        else:
            self._make_top(f"{staged}/diff", chain)

    def _make_top(self, path: str, chain: Chain) -> None:
        make_directory(path, 0o755, self.idmap.root)

    # -- mounts -------------------------------------------------------------------------

    def _mounts_home(self) -> Path:
        return self.home / "mnt"

    def _mount(self, id: LayerId, mount_label: str) -> Path:
        chain = self.layout.chain(id)
        diff, target = self.layout.path(id, "diff"), self._mountpoint(id)
        self._check_there(id, "its diff directory is gone")
        if not chain:
            return Path(diff)
        self.layout.check_chain(id, chain)
        if self._standing(target):
            return Path(target)
        if self.references.taken_elsewhere(id):
            raise LayerInUse(id, "a process in another mount namespace has it mounted")
        self.engine.settle(id, diff)
        make_directory(target, 0o755, self.idmap.root)
        self.engine.mount(Union(id, diff, self._directories(chain), target, mount_label))
        return Path(target)

    def release_mounts(self, id: LayerId) -> bool:
        """See :meth:`Driver.release_mounts`: what fuse-overlayfs shows elsewhere too stays.

        Its process goes on then, with the branch as it sees it: another on that would not agree
        with it, and its marks must stay its own.
        """
        with self.references.transition(id):
            if isinstance(self.engine, FuseEngine) and _is_shown_elsewhere(self._mountpoint(id)):
                return False
        return super().release_mounts(id)

    def _stands(self, id: LayerId) -> bool:
        return self._standing(self._mountpoint(id))

    def _standing(self, target: str) -> bool:
        """Whether a union is mounted and answers; a dead one is taken away."""
        try:
            if not is_mountpoint(target):
                return False
            os.statvfs(target)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise
            umount2(target, MNT_DETACH)  # fuse-overlayfs was killed
            return False
        return True

    def _detach_mount(self, id: LayerId, target: str) -> None:
        self.engine.unmount(target, id)
        self._unmounted(id)
        self._mend(id)

    def _unmounted(self, id: LayerId) -> None:
        diff = self.layout.path(id, "diff")
        if self.engine.unsettled(id) and os.path.isdir(diff):
            self.engine.settle(id, diff)

    def _mend(self, id: LayerId) -> None:
        """Let the kernel show the layer as it is, whichever engine wrote it."""
        from lamina.archive.aufs import mend

        lowers = self._directories(self.layout.chain(id))
        mend(self.layout.path(id, "diff"), [Path(lower) for lower in lowers])

    # -- what is known ------------------------------------------------------------------

    def status(self) -> list[tuple[str, str]]:
        """See :meth:`Driver.status`; the first four are Docker's."""
        kernel = isinstance(self.engine, KernelEngine)
        return [
            ("Root Dir", str(self.home)),
            ("Backing Filesystem", self.backing),
            ("Dirs", str(sum(1 for _ in self.ids()))),
            ("Dirperm1 Supported", "true" if kernel and dirperm1() else "false"),
            ("Union", self.engine.describe()),
            ("Union Chosen", self._why),
        ]

    def metadata(self, id: LayerId) -> dict[str, str]:
        """See :meth:`Driver.metadata`."""
        chain = self.layout.chain(id)
        facts = {"Branch": self.layout.path(id, "diff")}
        if chain:
            facts["Mountpoint"] = self._mountpoint(id)
            facts["Parents"] = " ".join(chain.layers)
        return facts

    def elsewhere(self, id: LayerId) -> Path | None:
        """See :meth:`Driver.elsewhere`: those made with the option ``branch``."""
        try:
            return Path(os.readlink(self.layout.path(id, "diff")))
        except OSError:
            return None

    # -- differences --------------------------------------------------------------------

    def _format(self) -> Format:
        from lamina.archive.whiteout import AUFS

        return AUFS

    def _view(self, id: LayerId) -> View:
        from lamina.archive.fuseoverlay import FUSE

        return FUSE if self.engine.unsettled(id) else self._format()

    def _lowers_to_pack(self, uppers: list[str], lowers: list[str]) -> list[str] | None:
        """AUFS does not need the parent to pack a layer: all its marks are kept, as Docker does."""
        return None if len(uppers) == 1 else lowers

    def _settle(self, staged: str, id: LayerId) -> None:
        self.engine.settle(id, self.layout.path(id, "diff"))
        super()._settle(staged, id)
        self._mend(id)

    def _directories(self, chain: Chain) -> list[str]:
        for id in chain.layers:
            self._check_there(id, "others stand on it, and it is gone")
        return super()._directories(chain)

    def _check_there(self, id: LayerId, why: str) -> None:
        """Raise LayerBroken, because of ``why``, where the layer's branch is not there."""
        if os.path.isdir(self.layout.path(id, "diff")):
            return
        place = self.elsewhere(id)
        raise LayerBroken(id, why if place is None else missing_elsewhere(place))


def _is_shown_elsewhere(target: str) -> bool:
    """Whether the file system that is mounted at ``target`` is mounted at another place too."""
    try:
        device = os.stat(target).st_dev if is_mountpoint(target) else None
    except OSError:  # of a process that is dead
        return False
    if device is None:
        return False
    return sum(os.makedev(point.major, point.minor) == device for point in mounts()) > 1


def _check_backing(home: Path) -> str:
    """The file system of ``home``, or of what is to hold it.

    Raises:
        DriverUnsupported: AUFS does not work on it.
    """
    place = nearest_existing(home)
    magic = filesystems.magic(place)
    name = filesystems.name(magic)
    if magic in _INCOMPATIBLE:
        raise DriverUnsupported("aufs", f"AUFS is not supported over {name} (at {place})")
    return name
