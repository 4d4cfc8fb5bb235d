"""A Docker root as a source of layers, images and containers."""

from __future__ import annotations

import errno
import os
import re
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lamina.archive import whiteout
from lamina.archive.survey import Survey, glance, survey
from lamina.archive.transplant import Foreign
from lamina.errors import PermissionRequired, StoreError
from lamina.kernel import mount
from lamina.kernel._syscall import AT_RECURSIVE
from lamina.kernel.idmap import IdMap, IdRange
from lamina.kernel.namespaces import in_user_namespace
from lamina.kernel.path import mount_id, open_in_root
from lamina.oci.docker import Branches, Catalog, Fault, Files, read_catalog
from lamina.store.adopt import usage

_MAPPED = re.compile(r"\d+\.\d+")
"""What a dockerd with ``--userns-remap`` calls its root, below the one that it was given."""
_MAPPED_IDS = 1 << 16
_PARTS = ("aufs", "aufs/diff", "aufs/layers", "image", "image/aufs")
_NO_CLONE = frozenset({errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})


class DockerSource:
    """A Docker root (``/var/lib/docker``) with AUFS layers; a context manager.

    While it is open no dockerd can start on it. ``alone`` keeps other readers out too.
    :attr:`idmap` says whose files are root's where dockerd ran with ``--userns-remap``.

    Raises:
        StoreError: there is no such root, or a dockerd is at work on it.
        PermissionRequired: this user may not read it.
    """

    def __init__(self, path: str | os.PathLike[str], *, alone: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        with ExitStack() as held:
            self._fd = _open_unchanging(self.path)
            held.callback(os.close, self._fd)
            self.files = Files(self._fd)
            _check_is_one(self.path, self.files)
            usage.lock(self.path, self.files, held, alone=alone)
            self.catalog: Catalog = read_catalog(self.files)
            self.branches = Branches(self.files)
            self.idmap = _id_map(self.files)
            self._held = held.pop_all()
        self._surveys: dict[str, Survey] = {}
        self._glances: dict[str, Survey] = {}

    def close(self) -> None:
        """Unlock it. May be called twice."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def check_apart(self, root: str | os.PathLike[str]) -> None:
        """Raise :class:`StoreError` where a store's root is this one, lies in it, or holds it."""
        store = Path(os.path.realpath(root))
        if self.path in (store, *store.parents) or store in self.path.parents:
            raise StoreError(
                f"the store {store} and the Docker root {self.path} must lie apart: "
                "choose another place for the store (--root)"
            )

    @property
    def faults(self) -> list[Fault]:
        """What is missing or damaged, as far as that is seen without reading the layers' files."""
        return [*self.catalog.faults, *self.branches.faults(self.catalog)]

    def foreign(self, branch: str, *, links: bool) -> Foreign:
        """A layer of the storage driver's, to be transplanted; with ``links`` by hard links."""
        directory = self.directory(branch)
        at = self.path / "aufs/diff" / branch
        return Foreign(directory, whiteout.AUFS, at if links else None, self.idmap)

    def can_link(self, place: Path) -> bool:
        """Whether the layers' files can be linked to in ``place``: one file system, one mount."""
        ours, theirs = (
            os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for path in (place, self.path / "aufs/diff")
        )
        try:
            one_device = os.fstat(ours).st_dev == os.fstat(theirs).st_dev
            return one_device and mount_id(ours) == mount_id(theirs)
        finally:
            os.close(ours)
            os.close(theirs)

    def directory(self, branch: str) -> Path:
        """Where this process reads a branch."""
        return self.reading / "aufs/diff" / branch

    @property
    def reading(self) -> Path:
        """The root, for this process alone, where reading it does not change access times."""
        return Path(f"/proc/self/fd/{self._fd}")

    def survey(self, branch: str) -> Survey:
        """How much a branch holds. Looked at once."""
        if branch not in self._surveys:
            self._surveys[branch] = survey(self.directory(branch))
        return self._surveys[branch]

    def glance(self, branch: str) -> Survey:
        """The part of :meth:`survey` that is had quickly: no sizes, nothing odd by name."""
        if branch in self._surveys:
            return self._surveys[branch]
        if branch not in self._glances:
            try:
                self._glances[branch] = glance(self.directory(branch))
            except OSError:  # deeper than a path can be
                self._glances[branch] = self.survey(branch)
        return self._glances[branch]


def require_root(what: str) -> None:
    """Raise :class:`PermissionRequired` unless this is root, and not only of a user namespace."""
    if os.geteuid() != 0 or in_user_namespace():
        raise PermissionRequired(f"{what} takes root: use sudo")


def _open_unchanging(path: Path) -> int:
    """A directory by a detached mount of our own, read-only and without access times.

    Plainly where that can't be had: in a user namespace, or before Linux 5.12.
    """
    try:
        fd = mount.open_tree(path, mount.OPEN_TREE_CLONE | AT_RECURSIVE)
    except FileNotFoundError:
        raise StoreError(f"there is no {path}") from None
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return _open_plainly(path)
    try:
        unchanging = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOATIME
        mount.mount_setattr(
            fd, attr_set=unchanging, attr_clr=mount.MOUNT_ATTR__ATIME, recursive=True
        )
    except OSError as error:
        os.close(fd)
        if error.errno not in _NO_CLONE:
            raise
        return _open_plainly(path)
    return fd


def _open_plainly(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise PermissionRequired(f"no permission to read {path}: use sudo") from error
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"there is no directory {path}") from None


def _id_map(files: Files) -> IdMap:
    """What owners stand for, by those of the mount points, which are always root's."""
    for name in (*files.names("aufs/mnt"), ""):
        try:
            fd = files.open_directory(f"aufs/mnt/{name}" if name else "aufs/diff")
        except OSError:
            continue
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        owner = status.st_uid, status.st_gid
        if owner in ((0, 0), (os.geteuid(), os.getegid())):
            break
        uids, gids = (IdRange(0, id, _MAPPED_IDS) for id in owner)
        return IdMap((uids,), (gids,))
    return IdMap()


def _check_is_one(path: Path, files: Files) -> None:
    """That it looks like a Docker root with AUFS layers, all of it real directories."""
    try:
        missing = [part for part in _PARTS if not files.is_directory(part)]
        os.close(open_in_root(files.fd, b"aufs", os.O_RDONLY | os.O_DIRECTORY))
    except PermissionError as error:
        raise PermissionRequired(f"no permission to read {path}: use sudo") from error
    except OSError:
        missing = [*_PARTS]
    if not missing:
        return
    mapped = [name for name in files.names(".") if _MAPPED.fullmatch(name)]
    if mapped:
        raise StoreError(
            f"{path} is no Docker root itself, but that of a dockerd with --userns-remap: "
            f"give {path / mapped[0]}"
        )
    for above in path.parents:
        if (above / "image/aufs").is_dir():
            raise StoreError(f"{path} is in a Docker root, and no such root itself: give {above}")
    if files.is_directory("graph"):
        raise StoreError(f"{path} is from before Docker 1.10: start a Docker 1.10 to 19.03 on it")
    others = [name for name in files.names("image") if name != "aufs"]
    has = f"; it has images of storage driver {', '.join(others)}" if others else ""
    raise StoreError(f"{path} is no Docker root with AUFS layers: no {missing[0]}{has}")
