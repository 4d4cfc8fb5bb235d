"""The storage driver's side of a Docker root: ``aufs/layers/ID`` and ``aufs/diff/ID``."""

from __future__ import annotations

from collections.abc import Iterator

from lamina.errors import printable
from lamina.oci.docker.catalog import BRANCH, Catalog
from lamina.oci.docker.files import Files
from lamina.oci.docker.records import Fault


class Branches:
    """The layers that Docker's AUFS driver has, and the chains that it mounts them in."""

    def __init__(self, files: Files) -> None:
        self._chains: dict[str, tuple[str, ...] | str] = {}
        self._directories: set[str] = set()
        for name in files.names("aufs/layers"):
            self._chains[name] = _read(files, name)
        for name in files.names("aufs/diff"):
            if not name.endswith("-removing") and files.is_directory(f"aufs/diff/{name}"):
                self._directories.add(name)

    def chain(self, id: str) -> tuple[str, ...] | None:
        """What a layer stands on, nearest first; None if that is missing or makes no sense."""
        found = self._chains.get(id)
        if not isinstance(found, tuple) or self.wrong(id) is not None:
            return None
        return found

    def whole(self) -> list[str]:
        """The layers that are all there, with all that they stand on; parents first."""
        whole: dict[str, None] = {}
        for id in sorted(self._chains, key=lambda branch: (len(self._chains[branch]), branch)):
            if self.wrong(id) is None and whole.keys() >= set(self._chains[id]):
                whole[id] = None
        return list(whole)

    def wrong(self, id: str) -> str | None:
        """What is wrong with one layer; None if nothing is."""
        chain = self._chains.get(id)
        if chain is None:
            return f"aufs/layers/{id} is missing"
        if isinstance(chain, str):
            return f"aufs/layers/{id}: {chain}"
        if id not in self._directories:
            return f"aufs/diff/{id} is missing"
        if id in chain or len(set(chain)) < len(chain):
            return f"aufs/layers/{id} goes round in a circle"
        for below in chain:
            if below not in self._chains or below not in self._directories:
                return f"aufs/layers/{id} names {printable(below)}, which is missing"
        if chain and self._chains[chain[0]] != chain[1:]:
            return f"aufs/layers/{id} and aufs/layers/{chain[0]} do not agree"
        return None

    def faults(self, catalog: Catalog) -> Iterator[Fault]:
        """What is wrong with layers, and where the catalog wants something else than there is.

        Layers that belong to no image or container, such as BuildKit's, are no fault.
        """
        for id in sorted(self._chains.keys() | self._directories):
            if (wrong := self.wrong(id)) is not None:
                yield Fault("branch", id, wrong, self._missing_below(id))
        for layer in catalog.layers.values():
            below = tuple(record.cache_id for record in catalog.chain(layer.parent))[::-1]
            if (fault := self._differs(layer.cache_id, below)) is not None:
                yield Fault("layer", layer.chain_id, fault, self._cause(layer.cache_id))
        for box in catalog.containers.values():
            below = tuple(record.cache_id for record in catalog.chain(box.chain))[::-1]
            if box.init_id is not None:
                below = (box.init_id, *below)
            if (fault := self._differs(box.mount_id, below)) is not None:
                yield Fault("container", box.name, fault, self._cause(box.mount_id))

    def _cause(self, id: str) -> str:
        """What is wrong with a layer is, where it is the storage driver's files: the branch."""
        return id if self.wrong(id) is not None else ""

    def _missing_below(self, id: str) -> str:
        """The layer that a whole one lacks; nothing where it is not that."""
        chain = self._chains.get(id, "")
        if isinstance(chain, str) or id not in self._directories or id in chain:
            return ""
        there = self._chains.keys() & self._directories
        return next((name for name in chain if name not in there), "")

    def _differs(self, id: str, below: tuple[str, ...]) -> str | None:
        wrong = self.wrong(id)
        if wrong is None and self._chains[id] != below:
            return f"aufs/layers/{id} does not list what it stands on"
        return wrong


def _read(files: Files, name: str) -> tuple[str, ...] | str:
    """The chain of a layer, or what is wrong with its file."""
    if not BRANCH.fullmatch(name):
        return "not called by an id"
    try:
        lines = files.read(f"aufs/layers/{name}").decode("ascii").split()
    except (OSError, ValueError) as error:
        return str(error)
    odd = [line for line in lines if not BRANCH.fullmatch(line)]
    return f"names {printable(odd[0])}, which is not an id" if odd else tuple(lines)
