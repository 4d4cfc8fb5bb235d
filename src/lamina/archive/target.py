"""The tree that a walk's nodes are copied to: standing where the walk stands.

A directory gets its metadata when it is left, so that filling it changes neither its time nor,
by a default ACL, what is made in it. Nothing is followed: every step down is one O_NOFOLLOW open.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from lamina.archive.descent import Descent
from lamina.archive.nodes import Copier
from lamina.archive.stack import Node
from lamina.archive.xattrs import ACL_DEFAULT
from lamina.kernel import xattr
from lamina.kernel.path import open_in_root


@dataclass(slots=True)
class _Level:
    status: os.stat_result
    attributes: dict[str, bytes]


class Target:
    """The tree at ``root_fd`` (which stays the caller's), filled with directories by ``copier``.

    A context manager: leaving it without an error finishes all directories. Without ``top`` the
    tree's own top directory keeps its metadata.
    """

    def __init__(self, root_fd: int, copier: Copier, *, top: bool = True) -> None:
        self._root_fd = root_fd
        self._copier = copier
        self._top = top
        self._descent = Descent([root_fd], one_mount=True)
        self._levels: list[_Level] = []
        self._links: dict[tuple[int, int], bytes] = {}
        self._inherits: bool | None = None

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                while self._levels:
                    self._finish()
        finally:
            self._descent.close()

    @property
    def fd(self) -> int:
        """The current directory."""
        return self._descent.fds[0]

    @property
    def inherits(self) -> bool:
        """Whether what is made in the current directory gets an ACL from it."""
        if self._inherits is None:
            try:
                self._inherits = xattr.get(self.fd, ACL_DEFAULT) is not None
            except xattr.XattrUnsupported:
                self._inherits = False
        return self._inherits

    def stand(self, node: Node) -> int:
        """Go up to the directory that ``node`` is in; its descriptor."""
        while len(self._levels) > node.depth:
            self._finish()
        return self.fd

    def enter(self, node: Node) -> int:
        """Go into the directory that corresponds to ``node``, which must be there; its descriptor.

        It gets the metadata of ``node`` when it is left. Raises OSError EBUSY where another file
        system is mounted.
        """
        assert node.status is not None
        if node.depth:
            self._descent.enter(node.name, [0])
        self._levels.append(_Level(node.status, self._copier.attributes(node.fd)))
        if node.depth or self._top:
            self._copier.open_up(self.fd)
        self._inherits = None
        return self.fd

    def link(self, node: Node, name: bytes) -> bool:
        """Link ``name`` to what was made of another name of the node's file, if one was."""
        status = node.status
        if status is None or status.st_nlink < 2:
            return False
        first = self._links.setdefault((status.st_dev, status.st_ino), node.path)
        if first == node.path:
            return False
        head, _, base = first.rpartition(b"/")
        try:
            directory = open_in_root(self._root_fd, head or b".", os.O_PATH | os.O_DIRECTORY)
            try:
                os.link(base, name, src_dir_fd=directory, dst_dir_fd=self.fd, follow_symlinks=False)
            finally:
                os.close(directory)
        except OSError as error:
            # Too many links, too long a path, or the first one was left out.
            if error.errno not in (errno.EMLINK, errno.ENAMETOOLONG, errno.ENOENT):
                raise
            return False
        return True

    def _finish(self) -> None:
        level = self._levels.pop()
        if self._levels or self._top:
            self._copier.directory(self.fd, level.status, level.attributes)
        self._inherits = None
        if self._levels:
            self._descent.leave()
