"""Changes as a tree with sizes, for a terminal."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from lamina.archive.changes import Change, Kind
from lamina.cli import output

LINES = 60
"""How many changes are shown one by one; of directories beyond that only the sum is."""

_STYLES = {Kind.ADDED: "green", Kind.MODIFIED: "yellow", Kind.DELETED: "red"}


class Node:
    """One path, and what changed below it."""

    __slots__ = ("below", "bytes", "children", "kind", "name")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.kind: Kind | None = None
        self.children: dict[bytes, Node] = {}
        self.below = 0
        """Changes below it."""
        self.bytes = 0
        """Size of the regular files at and below it."""


def grow(changes: Iterable[Change], sizes: Mapping[bytes, int]) -> Node:
    """The tree of all changes, its top the root directory."""
    top = Node(b"/")
    for change in changes:
        node, size = top, sizes.get(change.path, 0)
        for part in change.path.strip(b"/").split(b"/"):
            node.below += 1
            node.bytes += size
            node = node.children.setdefault(part, Node(part))
        node.kind = change.kind
        node.bytes += size
    return top


def opened(top: Node, lines: int) -> set[Node]:
    """The directories to be shown with what is in them: from the top, as far as lines last."""
    found = set()
    queue = deque([top])
    while queue:
        node = queue.popleft()
        if node.children and (len(node.children) <= lines or node is top):
            lines -= len(node.children)
            found.add(node)
            queue.extend(node.children.values())
    return found


def print_changes(changes: list[Change], sizes: Mapping[bytes, int]) -> None:
    """Draw the tree and its sum on stderr."""
    top = grow(changes, sizes)
    shown = opened(top, LINES)
    tree = Tree(Text("/"), guide_style="dim")
    waiting = [(top, tree)]
    while waiting:
        node, branch = waiting.pop()
        for child in node.children.values():
            path, child = _chain(child, shown)
            limb = branch.add(_label(path, child, folded=child not in shown))
            if child in shown:
                waiting.append((child, limb))
    console = Console(stderr=True, highlight=False)
    console.print(tree)
    console.print(_sum(changes, top.bytes))


def _chain(node: Node, shown: set[Node]) -> tuple[bytes, Node]:
    """The way down through directories that only lead to one other; it takes one line."""
    path = node.name
    while node in shown and len(node.children) == 1:
        (child,) = node.children.values()
        if not child.children or not _only_leads(node) or not _only_leads(child):
            break
        path += b"/" + child.name
        node = child
    return path, node


def _only_leads(node: Node) -> bool:
    return node.kind in (None, Kind.MODIFIED)


def _label(path: bytes, node: Node, *, folded: bool) -> Text:
    name = os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
    name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    if node.kind is None or (_only_leads(node) and node.children):
        text = Text(f"{name}/", style="dim")
    else:
        slash = "/" if node.children else ""
        text = Text(f"{node.kind} {name}{slash}", style=_STYLES[node.kind])
    if node.children and folded:
        text.append(f"  {node.below} more, {output.size(node.bytes)}", style="dim")
    elif node.bytes and not node.children:
        text.append(f"  {output.size(node.bytes)}", style="dim")
    return text


def _sum(changes: list[Change], size: int) -> Text:
    words = {Kind.ADDED: "added", Kind.MODIFIED: "changed", Kind.DELETED: "deleted"}
    counts = {kind: sum(1 for change in changes if change.kind is kind) for kind in words}
    parts = [f"{count} {words[kind]}" for kind, count in counts.items() if count]
    return Text(f"{', '.join(parts)}; {output.size(size)} in files", style="bold")
