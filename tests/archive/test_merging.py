"""Small trees from Hypothesis: merging, comparing and packing against a model of layers.

A layer is a dict by name: an int is a file of that size, None a whiteout, and a pair (opaque,
dict) a directory. A tree is the same without whiteouts and opaque directories.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive.changes import changes_from_uppers
from lamina.archive.pack import pack
from lamina.archive.stack import NodeKind, walk
from lamina.archive.unpack import unpack
from lamina.archive.whiteout import AUFS, OVERLAY, OVERLAY_USER, Format

pytestmark = pytest.mark.root

Layer: TypeAlias = dict[str, int | tuple[bool, "Layer"] | None]

names = st.sampled_from("abc")
files = st.integers(1, 3)
trees: st.SearchStrategy[Layer] = st.recursive(
    st.just({}),
    lambda below: st.dictionaries(names, files | st.tuples(st.just(False), below), max_size=3),
    max_leaves=6,
)
layers: st.SearchStrategy[Layer] = st.recursive(
    st.just({}),
    lambda below: st.dictionaries(
        names, files | st.none() | st.tuples(st.booleans(), below), max_size=3
    ),
    max_leaves=6,
)
formats = st.sampled_from([AUFS, OVERLAY, OVERLAY_USER])


def write(top: Path, layer: Layer, fmt: Format) -> Path:
    top.mkdir(exist_ok=True)
    fd = os.open(top, os.O_RDONLY)
    for name, what in layer.items():
        if what is None:
            fmt.write_whiteout(fd, name.encode())
        elif isinstance(what, int):
            (top / name).write_bytes(b"x" * what)
            os.utime(top / name, ns=(0, 0))
        else:
            write(top / name, what[1], fmt)
            if what[0]:
                below = os.open(top / name, os.O_RDONLY)
                fmt.set_opaque(below)
                os.close(below)
    os.close(fd)
    return top


def applied(tree: Layer, layer: Layer) -> Layer:
    """The tree after a layer was put on it."""
    result = dict(tree)
    for name, what in layer.items():
        below = tree.get(name)
        if what is None:
            result.pop(name, None)
        elif isinstance(what, int):
            result[name] = what
        else:
            merges = isinstance(below, tuple) and not what[0]
            result[name] = False, applied(below[1] if merges else {}, what[1])  # type: ignore[index]
    return result


def on_top_of(base: Layer, uppers: Sequence[Layer]) -> Layer:
    for layer in reversed(uppers):
        base = applied(base, layer)
    return base


def read(tops: Sequence[Path], fmt: Format) -> Layer:
    """The merged view as one layer."""
    root: Layer = {}
    directories = {b"": root}
    for node in walk(tops, fmt):
        if not node.path:
            continue
        into = directories[node.path.rpartition(b"/")[0]]
        name = node.name.decode()
        if node.kind is NodeKind.WHITEOUT:
            into[name] = None
        elif node.fd >= 0:
            into[name] = node.opaque, directories.setdefault(node.path, {})
        else:
            assert node.status is not None
            into[name] = node.status.st_size
    return root


def _size(what: object) -> int | None:
    return what if isinstance(what, int) else None


def changed(new: Layer, old: Layer, path: str = "") -> list[str]:
    found = []
    for name in sorted({*new, *old}):
        here = f"{path}/{name}"
        after, before = new.get(name), old.get(name)
        if name not in new:
            found.append(f"D {here}")
            continue
        inside = []
        if isinstance(after, tuple):
            inside = changed(after[1], before[1] if isinstance(before, tuple) else {}, here)
        if name not in old:
            found.append(f"A {here}")
        elif inside or type(after) is not type(before) or _size(after) != _size(before):
            found.append(f"C {here}")
        found += inside
    return found


@settings(max_examples=150, deadline=None)
@given(trees, st.lists(layers, min_size=1, max_size=3), st.integers(1, 3), formats)
def test_layers_one_by_one_or_at_once_come_to_the_same(
    base: Layer, stack: list[Layer], depth: int, fmt: Format
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tops = [write(Path(scratch, str(n)), layer, fmt) for n, layer in enumerate(stack)]
        bottom = write(Path(scratch, "base"), base, fmt)
        uppers, lowers = tops[:depth], [*tops[depth:], bottom]

        before = on_top_of(base, stack[depth:])
        after = on_top_of(base, stack)
        assert on_top_of(before, [read(uppers, fmt)]) == after
        found = [str(change) for change in changes_from_uppers(uppers, lowers, fmt)]
        assert found == sorted(changed(after, before), key=lambda line: line[2:])

        for known in (None, lowers):
            copy = Path(scratch, "copy" if known else "copy-without")
            copy.mkdir()
            archive = b"".join(map(bytes, pack(uppers, fmt=fmt, lowers=known)))
            unpack(io.BytesIO(archive), copy, fmt=fmt)
            assert on_top_of(before, [read([copy], fmt)]) == after
