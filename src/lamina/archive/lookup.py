"""Looking up names in a stack of layers on the way through a tree, without listing the stack.

Costs one lstat(2) for each layer that has the *directory* of a name, down to the first that has
the name (two where whiteouts are names of their own). Layers without the directory drop out when
it is entered, so that a deep stack is asked only near its top.

Links are not followed: names are those of the directories they are in.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from types import TracebackType
from typing import Self, TypeAlias

from lamina.archive.descent import Descent, Tree
from lamina.archive.stack import merge
from lamina.archive.whiteout import HIDDEN, View
from lamina.archive.xattrs import XattrPolicy
from lamina.kernel.path import fd_path


@dataclass(frozen=True, slots=True)
class Found:
    """An entry that shows in the current directory, and the directory it lies in there."""

    dir_fd: int
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        """Whether it can be entered."""
        return stat.S_ISDIR(self.status.st_mode)

    def readlink(self, name: bytes) -> bytes:
        """The target of a symbolic link, which is called ``name``."""
        return os.readlink(name, dir_fd=self.dir_fd)

    def attributes(
        self, name: bytes, view: View, policy: XattrPolicy, path: bytes
    ) -> dict[str, bytes]:
        """Of the entry called ``name``. Raises as :meth:`XattrPolicy.read`."""
        return policy.read(fd_path(self.dir_fd, name), view, path)


Mention: TypeAlias = tuple[int, Found]
"""The number of a layer, and its entry."""


class Lookup:
    """The merged view of layers, topmost first, as seen from one directory of it.

    Starts at the top. A context manager: leaving it closes the descriptors.
    """

    def __init__(self, layers: Sequence[Tree], fmt: View) -> None:
        self._fmt = fmt
        self._descent = Descent(layers)
        self._names: list[bytes] = []  # on the way from the top
        self._asked: tuple[bytes, list[Mention], Iterator[Mention]] | None = None
        """The name last found, where it was, and the layers below: entering it goes on there."""

    @property
    def depth(self) -> int:
        """Levels below the top."""
        return self._descent.depth

    @property
    def fd(self) -> int:
        """The current directory in the topmost layer that has it, or -1."""
        return next(iter(self._descent.fds.values()), -1)

    def find(self, name: bytes) -> Found | None:
        """The entry of that name that shows here, or None."""
        mentions = self._mentions(name)
        first = list(islice(mentions, 1))
        self._asked = name, first, mentions
        return first[0][1] if first else None

    def find_path(self, path: bytes) -> Found | None:
        """The entry that shows at ``path``, from the top; the top itself is ``b""``.

        Goes to the directory it is in, so that paths in an order in which directories keep
        together cost the least.
        """
        head, _, base = path.rpartition(b"/")
        self.go(head)
        if base:
            return self.find(base)
        return Found(self.fd, os.fstat(self.fd)) if self.fd >= 0 else None

    def go(self, path: bytes) -> None:
        """Go to a directory by its path from the top, which is ``b""``."""
        names = path.split(b"/") if path else []
        common = 0
        for name, here in zip(names, self._names, strict=False):
            if name != here:
                break
            common += 1
        while self.depth > common:
            self.leave()
        for name in names[common:]:
            self.enter(name)

    def names(self) -> list[bytes]:
        """All names that show here, sorted."""
        fds = self._descent.fds.items()
        return merge({number: self._fmt.listing(fd) for number, fd in fds})[1]

    def enter(self, name: bytes) -> None:
        """Go down. Where no directory of that name shows, nothing shows from there on."""
        first: list[Mention] = []
        mentions = self._mentions(name)
        if self._asked is not None and self._asked[0] == name:
            _, first, mentions = self._asked
        merged = []
        for number, found in chain(first, mentions):
            if not found.is_directory:
                break
            merged.append(number)
        self._asked = None
        self._descent.enter(name, merged, self._transparent)
        self._names.append(name)

    def leave(self) -> None:
        """Go back up."""
        self._asked = None
        self._names.pop()
        self._descent.leave()

    def _mentions(self, name: bytes) -> Iterator[Mention]:
        for number, fd in self._descent.fds.items():
            status = self._fmt.lookup(fd, name)
            if status is HIDDEN:
                return
            if isinstance(status, os.stat_result):
                yield number, Found(fd, status)

    def _transparent(self, number: int, fd: int) -> bool:
        return not self._fmt.is_opaque(fd)

    def close(self) -> None:
        """Close the descriptors."""
        self._descent.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
