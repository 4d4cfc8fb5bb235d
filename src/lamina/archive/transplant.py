"""Making a layer of one whiteout format from a layer directory of another, which stays as it is.

Where both lie on one file system the files can be hard links to those of the source, so that
only directories and whiteouts are made; else they share blocks or are copied.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lamina.archive.descent import Descent
from lamina.archive.nodes import Copier
from lamina.archive.owners import Owners, Warn, for_process
from lamina.archive.stack import Node, NodeKind, walk
from lamina.archive.target import Target
from lamina.archive.whiteout import WHITEOUT_PREFIX, Format, Hidden, Listing, View, same_xattr
from lamina.errors import printable
from lamina.kernel.idmap import IdMap
from lamina.kernel.path import fd_path
from lamina.log import Log

log = Log(__name__)

_NO_LINK = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM})
"""Another file system, too many links, or a file that may not be linked: then it is copied."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A layer directory that someone else keeps, and that is not to be changed."""

    directory: Path
    """Where it is read, perhaps by a mount that keeps access times from changing."""
    view: Format
    links: Path | None = None
    """The same directory where hard links can be had from (link(2) crosses no mount), if they
    may: then the new layer's files are the same files, which neither side may write to."""
    idmap: IdMap = IdMap()
    """What the owners there stand for. With one it can't be transplanted: it goes by tar."""


def transplant(
    layer: Foreign,
    target: str | bytes | Path,
    fmt: Format,
    *,
    owners: Owners | None = None,
    warn: Warn = log.warning,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Fill the empty directory ``target`` with what the layer says, its whiteouts in ``fmt``.

    What ``fmt`` would take for marks (a device 0:0, names that begin with ``.wh.``) is left out
    with a warning; so are, without one, attributes that it has under another name. Hard links stay
    hard links. ``progress`` is called with the bytes of each regular file. Returns the bytes of the
    regular files, a hard-linked one once. Raises OSError.
    """
    view = _Between(layer.view, fmt)
    copier = Copier(owners or for_process(IdMap()), view, warn)
    root_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    linker = None if layer.links is None else _Linker(layer.links)
    try:
        with Target(root_fd, copier) as tree:
            transplanting = _Transplanting(tree, copier, fmt, view, linker, warn)
            for node in walk([layer.directory], view):
                size = transplanting.add(node)
                if size and progress is not None:
                    progress(size)
        return transplanting.size
    finally:
        if linker is not None:
            linker.close()
        os.close(root_fd)


class _Transplanting:
    def __init__(
        self,
        target: Target,
        copier: Copier,
        fmt: Format,
        view: _Between,
        linker: _Linker | None,
        warn: Warn,
    ) -> None:
        self.size = 0
        self._target = target
        self._copier = copier
        self._fmt = fmt
        self._view = view
        self._linker = linker
        self._warn = warn
        self._seen: set[tuple[int, int]] = set()

    def add(self, node: Node) -> int:
        """Make what corresponds to ``node``; bytes of a regular file, counted or not."""
        fd = self._target.stand(node)
        if self._linker is not None:
            self._linker.stand(node)
        if node.kind is NodeKind.WHITEOUT:
            self._fmt.write_whiteout(fd, node.name)
        elif node.fd >= 0:
            self._directory(node, fd)
        elif not self._unspeakable(node):
            return self._file(node, fd)
        return 0

    def _directory(self, node: Node, fd: int) -> None:
        if node.depth:
            os.mkdir(node.name, 0o700, dir_fd=fd)
        below = self._target.enter(node)
        if self._linker is not None:
            self._linker.enter(node)
        if node.opaque:
            self._fmt.set_opaque(below)

    def _unspeakable(self, node: Node) -> bool:
        """Whether the target's format has no way to say that this is an entry."""
        assert node.status is not None
        if stat.S_ISREG(node.status.st_mode) and not node.name.startswith(WHITEOUT_PREFIX):
            return False
        mark = self._fmt.hidden_name(node.dir_fd, node.name, node.status)
        if mark is None and not self._fmt.is_meta(node.name):
            return False
        self._warn(f"left out, since it would be read as a whiteout: {printable(node.path)}")
        return True

    def _file(self, node: Node, fd: int) -> int:
        assert node.status is not None
        if not self._linked(node, fd) and not self._target.link(node, node.name):
            self._copier.node(node.dir_fd, node.name, node.status, fd, node.name)
        return self._count(node.status)

    def _linked(self, node: Node, fd: int) -> bool:
        if self._linker is None or self._marked(node):
            return False
        try:
            os.link(
                node.name,
                node.name,
                src_dir_fd=self._linker.fd,
                dst_dir_fd=fd,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        return True

    def _marked(self, node: Node) -> bool:
        """Whether a file has attributes that must not be in the target."""
        names = os.listxattr(fd_path(node.dir_fd, node.name), follow_symlinks=False)
        return any(map(self._view.private_xattr, names))

    def _count(self, status: os.stat_result) -> int:
        if not stat.S_ISREG(status.st_mode):
            return 0
        if status.st_nlink > 1:
            identity = (status.st_dev, status.st_ino)
            if identity in self._seen:
                return 0
            self._seen.add(identity)
        self.size += status.st_size
        return status.st_size


class _Linker:
    """Stands in the source by the way that links can be made from, where the walk stands."""

    def __init__(self, top: Path) -> None:
        self._descent = Descent([top])

    @property
    def fd(self) -> int:
        return self._descent.fds[0]

    def stand(self, node: Node) -> None:
        while self._descent.depth >= max(1, node.depth):
            self._descent.leave()

    def enter(self, node: Node) -> None:
        if node.depth:
            self._descent.enter(node.name, [0], lambda number, fd: True)

    def close(self) -> None:
        self._descent.close()


class _Between(View):
    """The source's marks; as private attributes, all that the target does not have as they are."""

    def __init__(self, source: View, target: View) -> None:
        self._source = source
        self._target = target

    def listing(self, dir_fd: int) -> Listing:
        return self._source.listing(dir_fd)

    def lookup(self, dir_fd: int, name: bytes) -> os.stat_result | Hidden | None:
        return self._source.lookup(dir_fd, name)

    def private_xattr(self, name: str) -> bool:
        return not same_xattr(name, self._source, self._target)
