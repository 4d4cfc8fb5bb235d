"""The merged view of some layer directories: what they together do to the layers below them.

Layers are given topmost first. Of each name the topmost layer that mentions it counts:

- an entry there hides what lower ones have of that name, unless both are directories, which merge;
- a whiteout there hides it too, and stays visible as a whiteout: it may hide something further
  down, below all the layers given;
- a directory cuts off lower layers' entries when it is opaque, or when between it and them the
  name was whited out or something else than a directory: then the merged directory is opaque;
- mode, owner, times and attributes are the topmost's.

This is how overlayfs and every OCI unpacker see it. (The aufs module lets entries through where a
file came between two directories; reference implementations of OCI layers do not.)
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lamina.archive.descent import Descent, Tree
from lamina.archive.whiteout import Listing, View
from lamina.archive.xattrs import XattrPolicy
from lamina.kernel.path import fd_path


class NodeKind(enum.Enum):
    """What a node of the merged view is."""

    ENTRY = "entry"
    WHITEOUT = "whiteout"


@dataclass(slots=True)
class Node:
    """One name of the merged view. Descriptors are valid until the walk goes on."""

    path: bytes
    """From the top of the layers, without a leading slash; the top itself is ``b""``."""
    name: bytes
    """Last component of the path."""
    depth: int
    """Components in ``path``."""
    kind: NodeKind
    dir_fd: int
    """The directory that holds the entry, in the topmost layer that has it; -1 for a directory,
    whose own ``fd`` is open instead."""
    status: os.stat_result | None
    """lstat(2) of an entry, None for a whiteout."""
    layer: int
    """Index of that layer among those given."""
    opaque: bool = False
    """Of a directory: it hides what the layers below have in it. Not said again of directories
    below an opaque one, nor ever of the top, where neither overlayfs nor AUFS look at the mark."""
    fd: int = -1
    """Of a directory: a descriptor of it in that layer."""

    @property
    def is_directory(self) -> bool:
        """Whether the walk goes into it."""
        return self.fd >= 0

    def readlink(self) -> bytes:
        """The target of a symbolic link."""
        return os.readlink(self.name, dir_fd=self.dir_fd)

    def attributes(self, view: View, policy: XattrPolicy) -> dict[str, bytes]:
        """Of an entry. Raises as :meth:`XattrPolicy.read`."""
        file = self.fd if self.fd >= 0 else fd_path(self.dir_fd, self.name)
        return policy.read(file, view, self.path)


Vanished = Callable[[bytes], None]


def walk(
    layers: Sequence[Tree], fmt: View, *, vanished: Vanished | None = None
) -> Generator[Node, None, None]:
    """Every name of the merged view, a directory before what is in it.

    In a directory whiteouts come first, then entries, each bytewise by name. Whiteouts in an
    opaque directory hide nothing, and are left out. With ``PLAIN`` as format every name is an
    entry. Neither depth nor path length is limited.

    An entry that goes away while it is looked at is passed to ``vanished`` (by its path) and left
    out. Other failures raise OSError with the path from the top of the layers.
    """
    descent = Descent(layers)
    try:
        yield from _Walk(descent, fmt, vanished or _ignore).nodes()
    finally:
        descent.close()


def _ignore(path: bytes) -> None:
    return


@dataclass(slots=True)
class _Level:
    """One directory on the way down: the names still to come, last first."""

    whiteouts: list[bytes]
    names: list[bytes]
    sources: dict[bytes, list[int]] | None
    """Layers that mention a name, topmost first, ending with ``~layer`` for a whiteout.
    None when only one layer has the directory."""
    opaque: bool
    path_length: int


class _Walk:
    def __init__(self, descent: Descent, fmt: View, vanished: Vanished) -> None:
        self.descent = descent
        self.listing = fmt.listing
        self.vanished = vanished
        self.path = b""

    def nodes(self) -> Iterator[Node]:
        fds = self.descent.fds
        if not fds:
            return
        listings = {number: self.listing(fd) for number, fd in fds.items()}
        first, top_fd = next(iter(fds.items()))
        yield Node(b"", b"", 0, NodeKind.ENTRY, -1, os.fstat(top_fd), first, fd=top_fd)
        levels = [self.level(listings, opaque=False)]
        while levels:
            level = levels[-1]
            if level.whiteouts:
                yield self.whiteout(level, level.whiteouts.pop())
            elif level.names:
                node = self.entry(level, level.names.pop(), levels)
                if node is not None:
                    yield node
            else:
                levels.pop()
                if levels:
                    self.descent.leave()
                    self.path = self.path[: levels[-1].path_length]

    def level(self, listings: dict[int, Listing], *, opaque: bool) -> _Level:
        """The current directory, merged over the layers that have it."""
        if len(listings) == 1:
            (only,) = listings.values()
            whiteouts, names, sources = only.whiteouts, only.names, None
        else:
            whiteouts, names, sources = merge(listings)
        if opaque:
            whiteouts = []
        return _Level(whiteouts[::-1], names[::-1], sources, opaque, len(self.path))

    def join(self, name: bytes) -> bytes:
        return b"%b/%b" % (self.path, name) if self.path else name

    def owner(self, level: _Level, name: bytes) -> tuple[int, int]:
        """The topmost layer that mentions a name, and its descriptor of the current directory."""
        fds = self.descent.fds
        if level.sources is None:
            return next(iter(fds.items()))
        number = level.sources[name][0]
        number = max(number, ~number)
        return number, fds[number]

    def whiteout(self, level: _Level, name: bytes) -> Node:
        number, fd = self.owner(level, name)
        depth = self.descent.depth + 1
        return Node(self.join(name), name, depth, NodeKind.WHITEOUT, fd, None, number)

    def entry(self, level: _Level, name: bytes, levels: list[_Level]) -> Node | None:
        number, fd = self.owner(level, name)
        path = self.join(name)
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            node = Node(path, name, self.descent.depth + 1, NodeKind.ENTRY, fd, status, number)
            if stat.S_ISDIR(status.st_mode):
                levels.append(self.enter(level, node))
        except (FileNotFoundError, NotADirectoryError):
            self.vanished(path)
            return None
        except OSError as error:
            error.filename = path
            raise
        return node

    def enter(self, level: _Level, node: Node) -> _Level:
        """Go into a directory, in every layer whose entries show in it."""
        listings: dict[int, Listing] = {}

        def visit(number: int, fd: int) -> bool:
            listings[number] = listing = self.listing(fd)
            return not listing.opaque

        sources = [node.layer] if level.sources is None else level.sources[node.name]
        merged = [number for number in sources if number >= 0]
        whole = self.descent.enter(node.name, merged, visit)
        cut = not whole or len(merged) < len(sources)
        node.opaque = cut and not level.opaque
        node.fd = self.descent.fds[node.layer]
        node.dir_fd = -1
        self.path = node.path
        return self.level(listings, opaque=cut or level.opaque)


def merge(
    listings: dict[int, Listing],
) -> tuple[list[bytes], list[bytes], dict[bytes, list[int]]]:
    """Whiteouts and entries of one directory over several layers, topmost first, and for each
    name the layers that mention it, down to the first whiteout, which is given as ``~layer``.
    """
    sources: dict[bytes, list[int]] = {}
    for number, listing in listings.items():
        for names, mention in ((listing.whiteouts, ~number), (listing.names, number)):
            for name in names:
                above = sources.setdefault(name, [])
                if not above or above[-1] >= 0:
                    above.append(mention)
    whiteouts = sorted(name for name, above in sources.items() if above[0] < 0)
    entries = sorted(name for name, above in sources.items() if above[0] >= 0)
    return whiteouts, entries, sources


def size(nodes: Iterable[Node]) -> int:
    """Bytes of the regular files among ``nodes``, a hard-linked one once."""
    total = 0
    linked: set[tuple[int, int]] = set()
    for node in nodes:
        status = node.status
        if status is None or not stat.S_ISREG(status.st_mode):
            continue
        if status.st_nlink > 1:
            identity = (status.st_dev, status.st_ino)
            if identity in linked:
                continue
            linked.add(identity)
        total += status.st_size
    return total
