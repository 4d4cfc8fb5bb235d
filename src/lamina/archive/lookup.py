"""Looking up names in a stack of layers on the way through a tree, without listing the stack.

Costs one lstat(2) for each layer that has the *directory* of a name, down to the first that has
the name (two where whiteouts are names of their own). Layers without the directory drop out when
it is entered, so that a deep stack is asked only near its top.
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


@dataclass(frozen=True, slots=True)
class Found:
    """An entry that shows in the current directory, and the directory it lies in there."""

    dir_fd: int
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        """Whether it can be entered."""
        return stat.S_ISDIR(self.status.st_mode)


Mention: TypeAlias = tuple[int, Found]
"""The number of a layer, and its entry."""


class Lookup:
    """The merged view of layers, topmost first, as seen from one directory of it.

    Starts at the top. A context manager: leaving it closes the descriptors.
    """

    def __init__(self, layers: Sequence[Tree], fmt: View) -> None:
        self._fmt = fmt
        self._descent = Descent(layers)
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

    def leave(self) -> None:
        """Go back up."""
        self._asked = None
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._descent.close()
