"""A hidden directory at the top of a layer, for what must not be seen while it is unpacked.

Sources of hard links wait there, and what an entry replaced goes there to be removed. Its name
can't be an entry's: every name of the form ``.wh.*`` in an archive is a marker. No link of the
archive leads there either: the tree is told to refuse it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from lamina.archive.placement import OPEN_DIRECTORY, Directory, Tree

NAME = b".wh..wh.aside"

Gone = Callable[[bytes, int, os.stat_result, bytes], None]


class Aside:
    """The hidden directory of ``tree``; made when first needed, removed by :meth:`close`."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._root_fd = tree.root.fd
        self._directory: Directory | None = None
        self._serial = 0

    @property
    def directory(self) -> Directory:
        """The directory itself."""
        if self._directory is None:
            os.mkdir(NAME, 0o700, dir_fd=self._root_fd)
            self._directory = Directory(os.open(NAME, OPEN_DIRECTORY, dir_fd=self._root_fd))
            self._tree.barred = self._directory.key
        return self._directory

    def new_name(self) -> bytes:
        """A name that is free in it."""
        self._serial += 1
        return b"%d" % self._serial

    def remove_tree(self, dir_fd: int, name: bytes, path: bytes, gone: Gone) -> None:
        """Remove the directory ``name`` in ``dir_fd``, called ``path``, with all that is in it.

        ``gone(path, directory, status, name)`` is called for each file before it is unlinked.
        However deep the tree, two descriptors do: each directory found is first moved here. So
        there is no way up, and no way out, whoever moves directories meanwhile.
        """
        pending = [(self._take(dir_fd, name), path)]
        while pending:
            moved, path = pending.pop()
            fd = os.open(moved, OPEN_DIRECTORY, dir_fd=self.directory.fd)
            try:
                for child in os.listdir(fd):
                    base = os.fsencode(child)
                    below = path + b"/" + base
                    status = os.stat(base, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append((self._take(fd, base), below))
                    else:
                        gone(below, fd, status, base)
                        os.unlink(base, dir_fd=fd)
            finally:
                os.close(fd)
            os.rmdir(moved, dir_fd=self.directory.fd)

    def files(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """Names and status of the files that wait in it."""
        if self._directory is not None:
            fd = self._directory.fd
            for name in os.listdir(fd):
                base = os.fsencode(name)
                yield base, os.stat(base, dir_fd=fd, follow_symlinks=False)

    def close(self) -> None:
        """Remove the directory and the files left in it."""
        if self._directory is not None:
            for name in os.listdir(self._directory.fd):
                os.unlink(os.fsencode(name), dir_fd=self._directory.fd)
            os.rmdir(NAME, dir_fd=self._root_fd)
            self.discard()

    def discard(self) -> None:
        """Close it, and leave it to whoever removes the layer."""
        if self._directory is not None:
            os.close(self._directory.fd)
            self._directory = None

    def _take(self, dir_fd: int, name: bytes) -> bytes:
        moved = self.new_name()
        os.rename(name, moved, src_dir_fd=dir_fd, dst_dir_fd=self.directory.fd)
        return moved
