"""The tree that a layer's tar describes, entry by entry, as unpacking it would make it.

What names mean, which entry wins, what a whiteout hides and what is refused is the same as in
:mod:`lamina.archive.unpack` and :mod:`lamina.archive.layer`, which say it in full; tests compare
the two. Here nothing is on disk, so that what depends on the lower layers can wait for the end.
"""

from __future__ import annotations

from collections.abc import Iterator

from lamina.archive.erofs.node import Directory, Node
from lamina.archive.placement import NAME_LIMIT, NoWay, clean, split
from lamina.errors import InvalidArchive, printable

_LINKS_FOLLOWED = 40  # MAXSYMLINKS in the kernel's include/linux/namei.h
_KEPT_HEADS = 8192
_SYMLINK = 0o120000
_TYPE = 0o170000


class LowerFile(Node):
    """A file of the layers below that a hard link needs; filled in at the end."""

    __slots__ = ("entry", "path")

    def __init__(self, path: bytes, entry: bytes) -> None:
        Node.__init__(self, 0o100000, 0, 0, 0)
        self.path = path
        self.entry = entry
        """The entry that links to it, for errors."""


class Tree:
    """Directories below one root, and where the archive's names lead in them."""

    def __init__(self) -> None:
        self.root = Directory(None)
        self.implied: list[Directory] = []
        self.copied: dict[bytes, LowerFile] = {}
        self.root_opaque = False
        self.head: bytes | None = None
        """What :meth:`parent` was asked for last."""
        self.last = self.root
        """What it answered."""
        self._heads: dict[bytes, Directory] = {}
        self._whiteouts = False

    # -- directories

    def parent(self, head: bytes) -> Directory:
        """The directory called ``head`` in the archive, made if it is missing.

        Raises InvalidArchive when there is no way to it.
        """
        found = self._heads.get(head)
        if found is None:
            path = clean(head)
            found = self.resolve(path) or self._imply(path)
            if len(self._heads) >= _KEPT_HEADS:
                self._heads.clear()
            self._heads[head] = found
        self.head, self.last = head, found
        return found

    def resolve(self, path: bytes) -> Directory | None:
        """The directory at a clean path, links followed as if the root were ``/``, or None."""
        directory = self.root
        pending = path.split(b"/")[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if not part or part == b".":
                continue
            if part == b"..":
                assert directory.parent is not None
                directory = directory.parent
                continue
            if len(part) > NAME_LIMIT:
                raise InvalidArchive("File name too long")
            node = directory.children.get(part)
            if isinstance(node, Directory):
                directory = node
            elif node is not None and node.mode & _TYPE == _SYMLINK:
                target = node.data
                assert isinstance(target, bytes)
                links += 1
                if links > _LINKS_FOLLOWED:
                    raise InvalidArchive("Too many levels of symbolic links")
                if target.startswith(b"/"):
                    directory = self.root
                pending.extend(target.split(b"/")[::-1])
            else:
                return None
        return directory

    def make_directory(self, parent: Directory, base: bytes) -> Directory:
        """The directory ``base`` in ``parent``: as it is, or made in place of what is there."""
        found = parent.children.get(base)
        if isinstance(found, Directory):
            return found
        directory = Directory(parent)
        if found is not None:
            self.remove(parent, base)
            directory.opaque = True
        elif parent.whiteouts and base in parent.whiteouts:
            parent.whiteouts.remove(base)
            directory.opaque = directory.hid = True
        parent.children[base] = directory
        return directory

    def _imply(self, path: bytes) -> Directory:
        missing = []
        parent = None
        while parent is None:
            path, base = split(path)
            missing.append(base)
            parent = self.resolve(path)
        for base in reversed(missing):
            path = path + b"/" + base if path else base
            found = parent.children.get(base)
            if found is not None:
                link = found.mode & _TYPE == _SYMLINK
                what = "a symbolic link to nowhere" if link else "no directory"
                raise NoWay(f"its parent '{printable(path)}' is {what}")
            parent = self.make_directory(parent, base)
            parent.implied = path
            self.implied.append(parent)
        return parent

    # -- other names

    def put(self, parent: Directory, base: bytes, node: Node) -> None:
        """Make ``node`` what is called ``base``, in place of whatever is."""
        if base in parent.children:
            self.remove(parent, base)
        elif parent.whiteouts:
            parent.whiteouts.discard(base)
        parent.children[base] = node

    def remove(self, parent: Directory, base: bytes) -> None:
        """Take away what is called ``base``, and what is in it."""
        node = parent.children.pop(base)
        if isinstance(node, Directory):
            node.parent = None
            self._forget()
        elif node.mode & _TYPE == _SYMLINK:
            self._forget()

    def _forget(self) -> None:
        self._heads.clear()
        self.head = None

    # -- hard links

    def find(self, path: bytes) -> tuple[Directory, bytes, Node] | None:
        """What the layer itself has at a clean path, with its directory and name.

        Raises InvalidArchive when it is a directory.
        """
        head, base = split(path)
        parent = self.resolve(head)
        if parent is None:
            return None
        node = parent.children.get(base) if base else self.root
        if isinstance(node, Directory):
            raise InvalidArchive(f"a hard link to the directory '{printable(path)}'")
        return None if node is None else (parent, base, node)

    def link(self, source: tuple[Directory, bytes, Node], parent: Directory, base: bytes) -> None:
        """Give ``source`` one more name. Raises InvalidArchive where the name takes it away."""
        directory, name, node = source
        if directory is parent and name == base:
            raise InvalidArchive("a hard link to itself")
        self.put(parent, base, node)
        above: Directory | None = directory
        while above is not self.root:
            if above is None:
                raise InvalidArchive("a hard link that replaces what it links to")
            above = above.parent

    # -- what of the lower layers is hidden

    def hide(self, parent: Directory, name: bytes) -> None:
        """A whiteout of ``name``: hides what lower layers have, not what this one has."""
        found = parent.children.get(name)
        if isinstance(found, Directory):
            self._make_opaque(found)
        elif found is None and not self._below_opaque(parent):
            if parent.whiteouts is None:
                parent.whiteouts = set()
            parent.whiteouts.add(name)
            self._whiteouts = True

    def set_opaque(self, directory: Directory) -> None:
        """Hide all that lower layers have in ``directory``."""
        if directory is self.root:
            self.root_opaque = True
        else:
            self._make_opaque(directory)

    def _make_opaque(self, directory: Directory) -> None:
        directory.opaque = True
        directory.hid = False
        if self._whiteouts:  # in it or below they hide nothing any more
            for below, _ in directories(directory):
                below.whiteouts = None

    def _below_opaque(self, directory: Directory) -> bool:
        above: Directory | None = directory
        while above is not None and above is not self.root:
            if above.opaque:
                return True
            above = above.parent
        return False

    def decided(self, path: bytes) -> bool:
        """Whether this layer has or hides a path, so that the lower layers' is not seen."""
        directory = self.root
        for part in path.split(b"/"):
            if directory.whiteouts and part in directory.whiteouts:
                return True
            node = directory.children.get(part)
            if node is None:
                return False
            if not isinstance(node, Directory) or node.opaque:
                return True
            directory = node
        return True


def directories(top: Directory, path: bytes = b"") -> Iterator[tuple[Directory, bytes]]:
    """``top`` and every directory below it, with their paths."""
    pending = [(top, path)]
    while pending:
        directory, path = pending.pop()
        yield directory, path
        pending.extend(
            (node, path + b"/" + name if path else name)
            for name, node in directory.children.items()
            if isinstance(node, Directory)
        )
