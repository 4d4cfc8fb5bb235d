"""What one plain tree has and another has not, as a layer: for trees that are no stacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from lamina.archive.changes import Kind, changes_between
from lamina.archive.descent import Tree
from lamina.archive.pack import PackOptions, pack_nodes
from lamina.archive.stack import Node, NodeKind, Vanished, size, walk
from lamina.archive.whiteout import PLAIN
from lamina.archive.xattrs import DEFAULT_POLICY, XattrPolicy
from lamina.kernel.idmap import IdMap


def pack_difference(
    new: Tree, old: Tree, *, idmap: IdMap | None = None, options: PackOptions | None = None
) -> Iterator[bytes | memoryview]:
    """A layer tar that makes ``new`` out of ``old``; otherwise as :func:`lamina.archive.pack.pack`.

    Both trees are compared as :func:`lamina.archive.changes.changes_between` does, before the
    first piece comes.
    """
    how = options or PackOptions()
    return pack_nodes(
        lambda vanished: difference(
            new, old, vanished=vanished, policy=how.xattrs, contents=how.compare_contents
        ),
        idmap=idmap,
        options=options,
    )


def size_of_difference(new: Tree, old: Tree) -> int:
    """Bytes of the regular files that such a layer has, a hard-linked one once."""
    return size(difference(new, old))


def difference(
    new: Tree,
    old: Tree,
    *,
    vanished: Vanished | None = None,
    policy: XattrPolicy = DEFAULT_POLICY,
    contents: bool = False,
) -> Iterator[Node]:
    """The nodes of ``new`` that are not as in ``old``, and whiteouts of what is gone.

    In the order of :func:`lamina.archive.stack.walk`; the top is left out.
    """
    changed: set[bytes] = set()
    gone: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for change in changes_between(new, old, policy=policy, contents=contents):
        path = change.path[1:]
        if change.kind is Kind.DELETED:
            head, _, name = path.rpartition(b"/")
            gone[head].append(name)
        else:
            changed.add(path)
    for node in walk([new], PLAIN, vanished=vanished):
        if node.depth and node.path in changed:
            yield node
        if node.fd >= 0 and node.path in gone:
            yield from (_whiteout(node, name) for name in gone[node.path])


def _whiteout(directory: Node, name: bytes) -> Node:
    path = directory.path + b"/" + name if directory.path else name
    return Node(path, name, directory.depth + 1, NodeKind.WHITEOUT, directory.fd, None, 0)
