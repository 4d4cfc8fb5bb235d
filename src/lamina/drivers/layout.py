"""A driver's home: one directory a layer.

    home/
      layers/ID/diff       the layer's own files (vfs: its whole tree)
      layers/ID/parents    its chain: parent, grandparent and so on, one a line; all from a /
                           on is the path of a directory that is no layer, below them
      layers/ID/children/  one empty file for each child's id
      layers/ID/...        what else the driver keeps (work, merged)
      staging/             half-made and half-removed layers (drivers.staging)

A layer is made in ``staging`` and appears by rename(2); it is renamed back there to be removed.
So ``layers`` holds whole layers only, and what a crash leaves is in ``staging`` and swept.

A name in ``children`` may be left by a crash; it counts only while that child names the
layer as its parent.

Directories are for root alone. Where owners are mapped the group of root inside may pass through
``home``, ``layers`` and ``ID`` on the way to a tree, as a runtime does that makes its mounts from
within the user namespace; it sees no names there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from lamina.drivers.base import check_id
from lamina.drivers.staging import Staging
from lamina.errors import LayerBroken, LayerExists, LayerInUse, LayerNotFound
from lamina.types import LayerId

_PASSABLE = 0o710


class Chain(NamedTuple):
    """What lies below a layer, nearest first."""

    layers: tuple[LayerId, ...] = ()
    base: Path | None = None
    """A directory that is no layer, below all of them."""

    def __bool__(self) -> bool:
        return bool(self.layers) or self.base is not None

    @property
    def parent(self) -> LayerId | None:
        """The nearest layer."""
        return self.layers[0] if self.layers else None

    def encode(self) -> bytes:
        """The content of a ``parents`` file."""
        base = b"" if self.base is None else os.fsencode(self.base)
        return b"".join(b"%s\n" % id.encode() for id in self.layers) + base

    @classmethod
    @lru_cache(maxsize=64)  # containers have few images, of many layers
    def decode(cls, data: bytes) -> Chain:
        """From the content of a ``parents`` file."""
        ids, slash, base = data.partition(b"/")
        layers = tuple(check_id(line.decode()) for line in ids.splitlines())
        return cls(layers, Path(os.fsdecode(slash + base)) if slash else None)


class Stage(Protocol):
    """A place for what is half-made; see :class:`lamina.drivers.staging.Staging`."""

    def directory(self) -> AbstractContextManager[str]:
        """A new, empty directory; what of it is left after the block is deleted."""

    def close(self) -> None:
        """Give up what is held between two directories."""


class AnyLayout(Protocol):
    """What :class:`lamina.drivers.directory.DirectoryDriver` needs to know of where layers lie.

    The methods are described at :class:`Layout`.
    """

    @property
    def staging(self) -> Stage:
        """Where layers are made and deleted."""

    def path(self, id: LayerId, part: str, /) -> str: ...  # noqa: D102
    def exists(self, id: LayerId, /) -> bool: ...  # noqa: D102
    def ids(self) -> Iterator[LayerId]: ...  # noqa: D102
    def chain(self, id: LayerId, /) -> Chain: ...  # noqa: D102
    def chain_of_child(self, parent: LayerId | None, /) -> Chain: ...  # noqa: D102
    def has_children(self, id: LayerId, /) -> bool: ...  # noqa: D102
    def commit(self, staged: str, id: LayerId, chain: Chain, /) -> None: ...  # noqa: D102
    def detach(self, id: LayerId, staged: str, /) -> None: ...  # noqa: D102


class Layout:
    """Finds, makes and removes layer directories below ``home``.

    ``group`` is the id of a group whose members may pass through them.
    """

    def __init__(self, home: Path, group: int | None = None) -> None:
        self.home = home
        self._group = group
        self._layers = f"{home}/layers"
        os.makedirs(home, mode=0o700, exist_ok=True)
        os.makedirs(self._layers, mode=0o700, exist_ok=True)
        self._let_pass(os.fspath(home), self._layers)
        self.staging = Staging(f"{home}/staging")

    def _let_pass(self, *paths: str) -> None:
        if self._group is None:
            return
        for path in paths:
            os.chown(path, -1, self._group)
            os.chmod(path, _PASSABLE)

    # -- looking ------------------------------------------------------------------------

    def path(self, id: LayerId, part: str = "") -> str:
        """Where a layer, or a part of it, lies or would lie."""
        return f"{self._layers}/{check_id(id)}/{part}"

    def exists(self, id: LayerId) -> bool:
        """Whether the layer is there."""
        return os.path.lexists(self.path(id))

    def ids(self) -> Iterator[LayerId]:
        """All layers, in no order."""
        with os.scandir(self._layers) as entries:
            for entry in entries:
                yield LayerId(entry.name)

    def chain(self, id: LayerId) -> Chain:
        """What the layer stands on.

        Raises:
            LayerNotFound: no such layer.
            LayerBroken: its ``parents`` file can't be read as one.
        """
        path = self.path(id, "parents")
        try:
            with open(path, "rb") as file:
                return Chain.decode(file.read())
        except FileNotFoundError:
            pass
        except (ValueError, IsADirectoryError) as error:
            raise LayerBroken(id, f"its list of parents is damaged: {error}") from error
        if not self.exists(id):
            raise LayerNotFound(id)
        return Chain()

    def chain_of_child(self, parent: LayerId | None) -> Chain:
        """What a new layer on ``parent`` stands on."""
        if parent is None:
            return Chain()
        below = self.chain(parent)
        return Chain((parent, *below.layers), below.base)

    def children(self, id: LayerId) -> list[LayerId]:
        """The layers that have ``id`` as their direct parent."""
        try:
            names = os.listdir(self.path(id, "children"))
        except FileNotFoundError:
            return []
        return [LayerId(name) for name in names if self._is_child(LayerId(name), id)]

    def has_children(self, id: LayerId) -> bool:
        """Whether any layer has ``id`` as its direct parent."""
        try:
            names = os.listdir(self.path(id, "children"))
        except FileNotFoundError:
            return False
        return any(self._is_child(LayerId(name), id) for name in names)

    def _is_child(self, id: LayerId, parent: LayerId) -> bool:
        try:
            return self.chain(id).layers[:1] == (parent,)
        except LayerNotFound:
            return False

    # -- making and removing ------------------------------------------------------------
    # Both change the children of a parent: the caller holds the parent's lock for commit,
    # and the layer's own for detach.

    def commit(self, staged: str, id: LayerId, chain: Chain) -> None:
        """Let a staged directory appear as the layer ``id``.

        Raises:
            LayerExists: there is one already.
            LayerNotFound: the parent went away meanwhile.
        """
        if chain:
            with open(f"{staged}/parents", "wb") as file:
                file.write(chain.encode())
        self._let_pass(staged)
        if chain.layers:
            self._announce(id, chain.layers[0])
        try:
            os.rename(staged, self.path(id).rstrip("/"))
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise LayerExists(id) from error
            raise

    def _announce(self, id: LayerId, parent: LayerId) -> None:
        """Mark ``id`` as a child of ``parent``, before it appears."""
        mark = self.path(parent, f"children/{id}")
        try:
            _touch(mark)
        except FileNotFoundError:
            try:
                os.mkdir(self.path(parent, "children"), 0o700)
            except FileNotFoundError as error:
                raise LayerNotFound(parent) from error
            _touch(mark)

    def detach(self, id: LayerId, staged: str) -> None:
        """Take the layer away into a staged directory, to be deleted with that.

        Raises:
            LayerInUse: it has children.
            LayerNotFound: no such layer.
        """
        if self.has_children(id):
            raise LayerInUse(id, "it has child layers")
        parent = self._parent_or_none(id)
        try:
            os.rename(self.path(id).rstrip("/"), f"{staged}/removing")
        except FileNotFoundError as error:
            raise LayerNotFound(id) from error
        if parent is not None:
            try:
                os.unlink(self.path(parent, f"children/{id}"))
            except FileNotFoundError:
                pass

    def _parent_or_none(self, id: LayerId) -> LayerId | None:
        try:
            return self.chain(id).parent
        except (LayerNotFound, LayerBroken):
            return None


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
