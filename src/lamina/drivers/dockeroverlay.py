"""Docker's overlay2 layout, as far as it takes to write layers that its driver goes on with.

    home/ID/diff       the layer, in overlayfs's format
    home/ID/link       a short name for it
    home/ID/lower      the short names of what it stands on, nearest first: ``l/A:l/B``
    home/ID/work       overlayfs's own; not for a layer that stands on nothing
    home/ID/committed  there when a layer stands on this one
    home/l/SHORT       symbolic link to ``../ID/diff``

As moby's daemon/graphdriver/overlay2/overlay.go writes it (20.10.24); modes are those that it
gives. The short names, random there, are made of the id here: made again, they are the same.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Collection, Sequence

from lamina.kernel.remove import remove_tree

_SHORT = 26
_MAKING = "-making"


class DockerOverlay:
    """A home of Docker's overlay2 driver at ``home``, made if missing.

    ``owner``: uid and gid of the layers' root, another one with ``--userns-remap``.
    """

    def __init__(self, home: str, owner: tuple[int, int] = (0, 0)) -> None:
        self.home = home
        self._owner = owner
        for path, mode in ((home, 0o710), (f"{home}/l", 0o700)):
            try:
                os.mkdir(path, mode)
                os.chmod(path, mode)
            except FileExistsError:
                pass
        os.chown(home, -1, owner[1])

    def exists(self, id: str) -> bool:
        """Whether the layer is there, whole."""
        return os.path.lexists(f"{self.home}/{id}")

    def diff(self, id: str) -> str:
        """Where a layer's files are."""
        return f"{self.home}/{id}/diff"

    def keep_only(self, ids: Collection[str]) -> None:
        """Remove all layers but these, and what attempts at others left. Raises OSError."""
        for name in os.listdir(self.home):
            if name != "l" and name not in ids:
                remove_tree(f"{self.home}/{name}")
        for short in set(os.listdir(f"{self.home}/l")).difference(map(_short, ids)):
            os.unlink(f"{self.home}/l/{short}")

    def make(
        self, id: str, chain: Sequence[str], fill: Callable[[str], object], *, is_parent: bool
    ) -> None:
        """Make a layer upon ``chain``, nearest first; ``fill`` fills its empty diff directory.

        It appears by one rename; what another attempt left is made anew. Raises OSError.
        """
        staged = f"{self.home}/{id}{_MAKING}"
        remove_tree(staged)
        for path, mode in ((staged, 0o710), (f"{staged}/diff", 0o755)):
            os.mkdir(path, mode)
            os.chmod(path, mode)
        os.chown(staged, -1, self._owner[1])
        os.chown(f"{staged}/diff", *self._owner)
        short = _short(id)
        _write(f"{staged}/link", short, 0o644)
        if chain:
            os.mkdir(f"{staged}/work", 0o700)
            os.chown(f"{staged}/work", *self._owner)
            _write(f"{staged}/lower", ":".join(f"l/{_short(below)}" for below in chain), 0o644)
        if is_parent:
            _write(f"{staged}/committed", "", 0o600)
        try:
            fill(f"{staged}/diff")
        except BaseException:
            remove_tree(staged)
            raise
        try:
            os.symlink(f"../{id}/diff", f"{self.home}/l/{short}")
        except FileExistsError:
            pass
        os.rename(staged, f"{self.home}/{id}")


def _short(id: str) -> str:
    return base64.b32encode(hashlib.sha256(id.encode()).digest()).decode()[:_SHORT]


def _write(path: str, text: str, mode: int) -> None:
    with open(path, "x", encoding="ascii") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
