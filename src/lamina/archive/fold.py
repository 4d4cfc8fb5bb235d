"""Layers put into one: onto a plain tree (:func:`fold`), or into another layer (:func:`squash`)."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lamina.archive import clearing
from lamina.archive.lookup import Lookup
from lamina.archive.nodes import Copier
from lamina.archive.owners import Owners, Warn, for_process
from lamina.archive.stack import Node, NodeKind, walk
from lamina.archive.target import Target
from lamina.archive.whiteout import Format
from lamina.kernel import xattr
from lamina.kernel.idmap import IdMap
from lamina.kernel.path import fd_path
from lamina.log import Log

log = Log(__name__)

AnyPath = str | bytes | Path

_serial = itertools.count()


def fold(
    uppers: Sequence[AnyPath],
    fmt: Format,
    target: AnyPath,
    *,
    move: bool = False,
    top: bool = True,
    owners: Owners | None = None,
    warn: Warn = log.warning,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Do to the plain tree ``target`` what the layers ``uppers``, topmost first, say.

    Whiteouts remove, opaque directories are emptied first, directories are merged and get the
    layer's metadata, everything else is replaced. A file is made under another name and renamed
    over the old one: at any moment there is the old one or the new one, whole. Nothing is followed
    and nothing below a mount point in ``target`` is touched.

    With ``move`` files leave the layers by rename where source and target are on one file system;
    the layers are then good for nothing but removal. Without ``top`` the directory ``target``
    itself, which may be another user's, keeps its metadata. ``progress`` is called with the bytes
    of each regular file.

    Raises OSError (EBUSY at a mount point); what was done until then stays done.
    """
    copier = Copier(owners or for_process(IdMap()), fmt, warn)
    root_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Target(root_fd, copier, top=top) as tree:
            folding = _Folding(tree, copier, fmt, move=move)
            for node in walk(uppers, fmt):
                try:
                    folding.apply(node)
                except OSError as error:
                    raise _with_path(error, node) from error
                if progress is not None and node.status is not None:
                    progress(node.status.st_size if stat.S_ISREG(node.status.st_mode) else 0)
    finally:
        os.close(root_fd)


class _Folding:
    def __init__(self, target: Target, copier: Copier, fmt: Format, *, move: bool) -> None:
        self._target = target
        self._copier = copier
        self._fmt = fmt
        self._move = move

    def apply(self, node: Node) -> None:
        fd = self._target.stand(node)
        if node.kind is NodeKind.WHITEOUT:
            clearing.remove(fd, node.name)
        elif node.fd >= 0:
            self._directory(node, fd)
        else:
            self._file(node, fd)

    def _directory(self, node: Node, fd: int) -> None:
        if node.depth:
            try:
                os.mkdir(node.name, 0o700, dir_fd=fd)
            except FileExistsError:
                if not _is_directory(fd, node.name):
                    clearing.remove(fd, node.name)
                    os.mkdir(node.name, 0o700, dir_fd=fd)
        below = self._target.enter(node)
        if node.opaque:
            clearing.empty(below)

    def _file(self, node: Node, fd: int) -> None:
        """Make the file beside the old one, then put it in its place."""
        if self._move and self._moved(node, fd):
            return
        status = node.status
        assert status is not None
        temporary = b".lamina-%d-%d" % (os.getpid(), next(_serial))
        try:
            if not self._target.link(node, temporary):
                made = self._copier.node(node.dir_fd, node.name, status, fd, temporary)
                if made is None:
                    return
                if self._target.inherits and not stat.S_ISLNK(status.st_mode):
                    self._copier.drop_inherited(node.dir_fd, node.name, fd, temporary)
            self._replace(fd, temporary, fd, node.name)
        finally:
            # Renaming one link over another of the same file leaves both (rename(2)).
            clearing.unlink(fd, temporary)

    def _moved(self, node: Node, fd: int) -> bool:
        """Rename the file out of the layer; False where that is not possible."""
        path = fd_path(node.dir_fd, node.name)
        for name in self._private(path):
            xattr.remove(path, name)
        try:
            self._replace(node.dir_fd, node.name, fd, node.name)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        return True

    def _private(self, path: bytes) -> list[str]:
        names = os.listxattr(path, follow_symlinks=False)
        for name in names:
            self._fmt.check_xattr(name, path)
        return [name for name in names if self._fmt.private_xattr(name)]

    def _replace(self, src_fd: int, src: bytes, dst_fd: int, dst: bytes) -> None:
        try:
            os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)
        except IsADirectoryError:
            clearing.remove(dst_fd, dst)
            os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)


def squash(
    uppers: Sequence[AnyPath],
    fmt: Format,
    target: AnyPath,
    *,
    lowers: Sequence[Path] | None = None,
    move: bool = False,
    owners: Owners | None = None,
    warn: Warn = log.warning,
) -> None:
    """Merge layers, topmost first, into the new layer directory ``target`` of the same format.

    ``target`` is made, or is empty. The result does to the layers below, ``lowers``, what
    ``uppers`` do in turn: opaque marks stay, and whiteouts where ``lowers`` have something to
    hide (None: not known, so that all stay). Files are hard links to those of ``uppers``, or with
    ``move`` renamed out of them; copies where they lie on another file system. Raises OSError.
    """
    try:
        os.mkdir(target, 0o700)
    except FileExistsError:
        pass
    copier = Copier(owners or for_process(IdMap()), fmt, warn)
    root_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with ExitStack() as held:
            below = None if lowers is None else held.enter_context(Lookup(lowers, fmt))
            tree = held.enter_context(Target(root_fd, copier))
            squashing = _Squashing(tree, copier, fmt, below, move=move)
            for node in walk(uppers, fmt):
                try:
                    squashing.add(node)
                except OSError as error:
                    raise _with_path(error, node) from error
    finally:
        os.close(root_fd)


class _Squashing:
    def __init__(
        self,
        target: Target,
        copier: Copier,
        fmt: Format,
        lowers: Lookup | None,
        *,
        move: bool,
    ) -> None:
        self._target = target
        self._copier = copier
        self._fmt = fmt
        self._lowers = lowers
        self._move = move

    def add(self, node: Node) -> None:
        fd = self._target.stand(node)
        if node.kind is NodeKind.WHITEOUT:
            if self._hides_something(node):
                self._fmt.write_whiteout(fd, node.name)
        elif node.fd >= 0:
            if node.depth:
                os.mkdir(node.name, 0o700, dir_fd=fd)
            below = self._target.enter(node)
            if node.opaque:
                self._fmt.set_opaque(below)
        elif not self._taken_over(node, fd) and not self._target.link(node, node.name):
            assert node.status is not None
            self._copier.node(node.dir_fd, node.name, node.status, fd, node.name)

    def _hides_something(self, node: Node) -> bool:
        return self._lowers is None or self._lowers.find_path(node.path) is not None

    def _taken_over(self, node: Node, fd: int) -> bool:
        """Rename or link the file itself into ``fd``; False where only a copy can be had."""
        try:
            if self._move:
                os.rename(node.name, node.name, src_dir_fd=node.dir_fd, dst_dir_fd=fd)
            else:
                os.link(
                    node.name,
                    node.name,
                    src_dir_fd=node.dir_fd,
                    dst_dir_fd=fd,
                    follow_symlinks=False,
                )
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                return False
            raise
        return True


def _is_directory(dir_fd: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)


def _with_path(error: OSError, node: Node) -> OSError:
    return OSError(error.errno, error.strerror, os.fsdecode(b"/" + node.path))
