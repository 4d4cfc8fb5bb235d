"""The end of an index: what had to wait for the last entry, and for the layers below."""

from __future__ import annotations

import stat

from lamina.archive.erofs.attributes import OPAQUE, without_default
from lamina.archive.erofs.below import Below, LowerNode, Lowers, Nothing
from lamina.archive.erofs.beside import Beside
from lamina.archive.erofs.node import Directory, Node
from lamina.archive.erofs.tree import LowerFile, Tree, directories
from lamina.archive.placement import split
from lamina.errors import InvalidArchive, printable


def settle(tree: Tree, lowers: Lowers | None, beside: Beside) -> None:
    """Complete the tree of a layer over ``lowers`` (None: not known).

    Raises InvalidArchive for a hard link to what they do not have.
    """
    below = lowers() if callable(lowers) else lowers or Nothing()
    if not tree.root.described:
        tree.root.implied = b""
        tree.implied.append(tree.root)
    if callable(lowers):
        for path, copy in tree.copied.items():
            copy_up(copy, below.find(path), beside)
    if tree.root_opaque:
        for name in below.names():
            tree.hide(tree.root, name)
    else:
        _link_copies(tree)
    for directory in tree.implied:
        assert directory.implied is not None
        _like_below(directory, below.find(directory.implied))
    _write_marks(tree, None if lowers is None else below)


def copy_up(copy: LowerFile, found: LowerNode | None, beside: Beside) -> None:
    """Make a file that a hard link needs what was ``found`` in the layers below."""
    name = printable(copy.path)
    if found is None:
        raise InvalidArchive(f"a hard link to '{name}', which is not there", copy.entry)
    if found.is_directory:
        raise InvalidArchive(f"a hard link to the directory '{name}'", copy.entry)
    node = found.node()
    if stat.S_ISREG(node.mode) and node.size:
        node.data = ~beside.copy(found.content(), node.size)
    copy.become(node)


def _link_copies(tree: Tree) -> None:
    """A link to a lower file copies that up, in any union file system: the copy shows."""
    for path, copy in tree.copied.items():
        if not tree.decided(path):
            head, base = split(path)
            tree.put(tree.parent(head), base, copy)


def _like_below(directory: Directory, found: LowerNode | None) -> None:
    """Give a directory that was implied what the layers below have of it."""
    if found is None or not found.is_directory:
        return
    node = found.node()
    if not directory.described:
        directory.become(node)
    elif node.xattrs:
        directory.xattrs = {**without_default(node.xattrs), **(directory.xattrs or {})}


def _write_marks(tree: Tree, below: Below | None) -> None:
    """Turn whiteouts into devices and opaque directories' marks into attributes.

    A whiteout that hides nothing of the layers ``below`` (None: not known) would be listed.
    """
    for directory, path in directories(tree.root):
        if directory.hid and below is not None and below.find(path) is None:
            directory.opaque = False
        if directory.opaque:
            directory.xattrs = {**(directory.xattrs or {}), OPAQUE: b"y"}
        for name in directory.whiteouts or ():
            if below is None or below.find(path + b"/" + name if path else name) is not None:
                directory.children[name] = Node(stat.S_IFCHR, 0, 0, 0)
