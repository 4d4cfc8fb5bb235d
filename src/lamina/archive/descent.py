"""Standing in one directory of one or more trees, however deep, with few descriptors open.

A walk by descriptors is immune to renames above it and to PATH_MAX, but a descriptor for every
level of a 10,000-deep tree is more than a process may have. So only the upper levels stay
open; deeper ones are reopened through ``..`` on the way back, and checked to be what they were.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from lamina.kernel import path

Tree: TypeAlias = "int | str | bytes | os.PathLike[str]"
"""A directory: a path, or a descriptor, which stays the caller's."""

Visit: TypeAlias = Callable[[int, int], bool]

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_KEPT = 64
"""Descriptors that stay open above the current directory, over all trees together."""


def open_tree(tree: Tree) -> int:
    """A new descriptor of a tree's top; a symbolic link to it is followed."""
    if isinstance(tree, int):
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    return os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_same_mount(dir_fd: int, name: bytes) -> int:
    """A descriptor of a directory in another; OSError EBUSY where something is mounted there."""
    try:
        return path.open_same_mount(dir_fd, name, DIRECTORY)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, "another file system is mounted there") from error
        raise


def _open(dir_fd: int, name: bytes) -> int:
    return os.open(name, DIRECTORY, dir_fd=dir_fd)


def identity(fd: int) -> tuple[int, int]:
    """Device and inode: what a file is, whatever it is called."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class Descent:
    """The way down from the tops of some trees, numbered from 0, to a current directory.

    A directory need not be there in every tree. ``fds`` maps the tree's number to the current
    directory's descriptor, topmost tree first.

    With ``one_mount`` it does not go where another file system is mounted: that is EBUSY.

    What is kept open: the levels near the top, and for each tree the deepest directory it has on
    the way; from there every directory above in that tree is reached by ``..``.
    """

    def __init__(self, trees: Sequence[Tree], *, one_mount: bool = False) -> None:
        self.fds: dict[int, int] = {}
        self._above: list[dict[int, int | tuple[int, int]]] = []
        self._open = open_same_mount if one_mount else _open
        self._kept_levels = _KEPT // max(1, len(trees))
        try:
            for number, tree in enumerate(trees):
                self.fds[number] = open_tree(tree)
        except BaseException:
            self.close()
            raise

    @property
    def depth(self) -> int:
        """Levels below the top."""
        return len(self._above)

    def enter(self, name: bytes, numbers: Iterable[int], visit: Visit | None = None) -> bool:
        """Go down to ``name`` in the trees given, one after the other.

        ``visit(number, fd)`` is called for each and says whether the trees after it count too;
        without it they do.
        Returns whether all did: False when ``visit`` stopped, or a later tree has something else
        than a directory there. Raises OSError when the first can't be opened, then still standing
        where it stood.
        """
        above: dict[int, int | tuple[int, int]] = {**self.fds}
        here, self.fds = self.fds, {}
        self._above.append(above)
        try:
            for number in numbers:
                try:
                    fd = self._open(here[number], name)
                except (NotADirectoryError, FileNotFoundError):
                    if not self.fds:
                        raise
                    return False
                self.fds[number] = fd
                if len(self._above) > self._kept_levels:
                    above[number] = identity(here[number])
                    os.close(here[number])
                if visit is not None and not visit(number, fd):
                    return False
        except BaseException:
            self.leave()
            raise
        return True

    def leave(self) -> None:
        """Go back up. Raises OSError (ESTALE) when the directory was moved meanwhile."""
        below, level = self.fds, self._above.pop()
        here = {number: held for number, held in level.items() if isinstance(held, int)}
        self.fds = here
        try:
            for number in list(below):
                held = level[number]
                if not isinstance(held, int):
                    here[number] = _parent(below[number], expected=held)
                os.close(below.pop(number))
            if list(here) != list(level):
                self.fds = dict(sorted(here.items()))
        finally:
            for fd in below.values():
                os.close(fd)

    def close(self) -> None:
        """Close every descriptor."""
        self._above.append({**self.fds})
        for level in self._above:
            for held in level.values():
                if isinstance(held, int):
                    os.close(held)
        self.fds = {}
        self._above = []


def _parent(fd: int, expected: tuple[int, int]) -> int:
    parent = os.open(b"..", DIRECTORY, dir_fd=fd)
    if identity(parent) != expected:
        os.close(parent)
        raise OSError(errno.ESTALE, "the directory was moved while it was read")
    return parent
