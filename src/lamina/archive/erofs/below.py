"""What the builder of an index asks about the layers below."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from lamina.archive.erofs.node import Node


class LowerNode(Protocol):
    """Something that shows at a path of the layers below."""

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""

    def node(self) -> Node:
        """What it is like, without where its data are; attributes that are no marks."""

    def content(self) -> Iterator[bytes | memoryview]:
        """The bytes of a regular file."""


class Below(Protocol):
    """The merged view of the layers below; links are not followed."""

    def find(self, path: bytes) -> LowerNode | None:
        """What shows at a clean path, ``b""`` being the top; None: nothing."""

    def names(self) -> list[bytes]:
        """The names that show at the top."""


class Nothing:
    """No layers below."""

    def find(self, path: bytes) -> LowerNode | None:
        """None."""
        return None

    def names(self) -> list[bytes]:
        """None at all."""
        return []


Lowers: TypeAlias = Below | Callable[[], Below]
"""The layers below, or what waits until they are complete."""
