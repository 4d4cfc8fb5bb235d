"""Layers over others: whiteouts, implied directories, links to lower files, and merged indexes.

Layers from Hypothesis are unpacked and indexed side by side. Their indexes are what is on disk;
the merged index is what the kernel's overlay of the unpacked directories shows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive.tar import Entry
from lamina.archive.whiteout import OVERLAY
from lamina.errors import InvalidArchive
from tests.archive import layers
from tests.archive.erofs import indexes
from tests.archive.tars import archive, device, directory, fifo, file, hardlink, symlink
from tests.archive.trees import differences
from tests.support import need_filesystem

pytestmark = pytest.mark.root

Made = tuple[Entry, bytes]


class Stack:
    """Layers on disk, unpacked and indexed, lowest first."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.trees: list[Path] = []
        self.indexes: list[indexes.Index] = []

    def add(self, *made: Made) -> None:
        """One more layer on top; its index must be what unpacking made."""
        number = len(self.trees)
        tar = archive(*made)
        tree = self.place / f"tree{number}"
        try:
            indexes.unpacked(tree, tar, self.trees[::-1])
        except InvalidArchive as error:
            with pytest.raises(InvalidArchive) as building:
                indexes.build(self.place / f"index{number}", tar, self.indexes[::-1])
            assert building.value.entry == error.entry
            shutil.rmtree(tree)
            return
        index = indexes.build(self.place / f"index{number}", tar, self.indexes[::-1])
        with index.open() as image:
            assert differences(indexes.of_image(image), indexes.facts(tree)) == []
        self.trees.append(tree)
        self.indexes.append(index)

    def check_merged(self) -> indexes.Index:
        """The merged index shows what overlayfs shows of the directories."""
        merged = indexes.merge(self.place / "merged", self.indexes)
        ignored = ("links",)  # overlayfs counts names that it hides, and gives directories one
        with merged.open() as image:
            ours = indexes.without(indexes.of_image(image), *ignored)
        for about in ours.values():  # a merged index is a layer: overlayfs undoes the escaping
            names = ((OVERLAY.content_xattr(name), v) for name, v in about["xattrs"].items())
            about["xattrs"] = dict(names)
        with layers.overlay(self.place / "overlay", self.trees[::-1]) as root:
            kernels = indexes.without(indexes.facts(root), *ignored)
        assert differences(ours, kernels) == []
        return merged

    def check_mounted(self) -> None:
        """Overlayfs over the layers' own indexes shows what a mount of the merged one shows."""
        merged = indexes.merge(self.place / "merged", self.indexes)
        with ExitStack() as mounts:
            tops = [mounts.enter_context(index.mounted()) for index in self.indexes[::-1]]
            one = mounts.enter_context(merged.mounted())
            for lowers, name in ((tops, "stacked"), ([one], "alone")):
                with layers.overlay(self.place / name, lowers) as root:
                    found = indexes.without(indexes.facts(root), "links")
                if name == "stacked":
                    expected = found
        assert differences(found, expected) == []


@pytest.fixture
def stack(memory: Path) -> Stack:
    return Stack(memory)


def test_whiteouts_hide_what_is_below(stack: Stack) -> None:
    stack.add(
        directory("."),
        file("a", b"a"),
        directory("d"),
        file("d/b", b"b"),
        file("d/c", b"c"),
        directory("e"),
        file("e/f", b"f"),
        directory("g"),
        directory("g/h"),
        file("g/h/i", b"i"),
    )
    stack.add(
        file(".wh.a"),
        file("d/.wh.b"),
        file("d/.wh.never"),
        file(".wh.e"),
        directory("e", 0o700),
        directory("g/h"),
        file("g/h/.wh..wh..opq"),
        file("g/h/j", b"j"),
    )
    stack.add(file("d/.wh.c"), directory("a"), file("a/x", b"x"), file(".wh.g"))
    stack.check_mounted()
    merged = stack.check_merged()
    with merged.mounted() as root:
        assert sorted(path.name for path in root.iterdir()) == ["a", "d", "e"]


def test_implied_directories_are_as_those_below(stack: Stack) -> None:
    stack.add(
        directory(".", 0o751, uid=5),
        directory("d", 0o700, uid=1, gid=2, xattrs={"user.a": b"1"}),
        directory("d/e", 0o1777, uid=3),
        file("f", b"no directory"),
    )
    stack.add(file("d/e/f/g", b"x"), file("f/h", b"y"))
    stack.add(file("d/e/i"), directory("d", 0o755, xattrs={"user.b": b"2"}))
    stack.check_merged()


def test_a_link_to_a_lower_file_copies_it_up(stack: Stack) -> None:
    stack.add(
        directory("."),
        directory("d"),
        file("d/f", b"content" * 1000, mode=0o4755, uid=9, xattrs={"user.a": b"1"}),
        symlink("d/s", "f"),
        fifo("d/p"),
    )
    stack.add(hardlink("one", "d/f"), hardlink("two", "d/f"), hardlink("d/t", "d/s"))
    assert stack.indexes[1].built is not None
    assert stack.indexes[1].built.beside_size == 7168
    stack.add(hardlink("p", "d/p"), hardlink("three", "one"), file(".wh.one"))
    stack.add(hardlink("x", "d/f"), file("d/.wh.f"))
    stack.check_merged()
    stack.check_mounted()


def test_an_opaque_top_hides_every_name(stack: Stack) -> None:
    stack.add(directory("."), file("a", b"a"), directory("d"), file("d/e"))
    stack.add(file(".wh..wh..opq"), file("b", b"b"), directory("d"), hardlink("c", "a"))
    stack.check_merged()


def test_files_with_many_names_across_layers(stack: Stack) -> None:
    stack.add(directory("."), file("a", b"a"), *(hardlink(f"a{n}", "a") for n in range(20)))
    stack.add(*(file(f".wh.a{n}") for n in range(10)), file("a11", b"new"), hardlink("b", "a12"))
    merged = stack.check_merged()
    with merged.open() as image:
        assert image.find(b"a").nlink == 9
        assert image.find(b"b").nlink == 2


def test_marks_in_the_content_survive(stack: Stack) -> None:
    mark = {"trusted.overlay.opaque": b"y", "user.overlay.whiteout": b"y"}
    stack.add(directory("."), directory("d", xattrs=mark), file("d/f", b"x", xattrs=mark))
    stack.add(directory("d"), file("d/g", b"x"))
    merged = stack.check_merged()
    with merged.open() as image:
        inode = image.find(b"d/f")
        assert inode is not None
        assert image.xattrs(inode)["trusted.overlay.overlay.opaque"] == b"y"


def test_five_hundred_layers_are_one(stack: Stack) -> None:
    for number in range(500):
        made = [file("same", b"%d" % number), file(f"of{number}", b"%d" % number)]
        index = indexes.build(stack.place / f"i{number}", archive(directory("."), *made))
        stack.indexes.append(index)
    merged = indexes.merge(stack.place / "merged", stack.indexes)
    with merged.open() as image:
        for name, content in ((b"same", b"499"), (b"of0", b"0"), (b"of321", b"321")):
            inode = image.find(name)
            assert inode is not None
            assert image.read(inode) == content


def test_a_merged_index_is_a_layer_itself(stack: Stack) -> None:
    stack.add(directory("."), file("a", b"a"), file("b", b"b"))
    stack.add(file(".wh.a"), file("c", b"c"))
    stack.add(file("b", b"new"), hardlink("d", "c"))
    whole = indexes.merge(stack.place / "whole", stack.indexes)
    half = indexes.merge(stack.place / "half", stack.indexes[:2])
    again = indexes.merge(stack.place / "again", [half, stack.indexes[2]])
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert again.devices == whole.devices


names = st.sampled_from(["a", "b", "c", "d", "a/a", "a/b", "b/a", "b/c", "a/b/c", "d/a/b", "c/a/a"])
targets = st.sampled_from(["a", "b", "../a", "/b", "a/b", "c/../d", "nowhere", "."])
modes = st.sampled_from([0o644, 0o755, 0o700])
attributes = st.sampled_from([{}, {"user.a": b"1"}, {"user.b": b"2", "trusted.c": b""}])
entries: st.SearchStrategy[Made] = st.one_of(
    st.builds(
        lambda n, c, m, x: file(n, c, mode=m, xattrs=x),
        names, st.binary(max_size=3), modes, attributes,
    ),
    st.builds(lambda n, m, x: directory(n, m, xattrs=x), names, modes, attributes),
    st.builds(symlink, names, targets),
    st.builds(hardlink, names, names),
    st.builds(fifo, names),
    st.builds(lambda n: device(n, 1, 3), names),
    st.builds(lambda n: file("/".join([*n.split("/")[:-1], ".wh." + n.split("/")[-1]])), names),
    st.builds(lambda n: file(n + "/.wh..wh..opq"), names),
    st.just(directory(".", 0o700)),
    st.just(file(".wh..wh..opq")),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(entries, min_size=1, max_size=8), min_size=1, max_size=4))
def test_any_layers_come_to_what_the_kernel_shows(
    memory_once: Path, made: list[Sequence[Made]]
) -> None:
    place = Path(tempfile.mkdtemp(dir=memory_once))
    try:
        stack = Stack(place)
        for layer in made:
            stack.add(*layer)
        if stack.trees:
            stack.check_merged()
    finally:
        shutil.rmtree(place)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(entries, min_size=1, max_size=8), min_size=2, max_size=3))
def test_any_layers_mounted_are_what_their_merged_index_is(
    memory_once: Path, made: list[Sequence[Made]]
) -> None:
    place = Path(tempfile.mkdtemp(dir=memory_once))
    try:
        stack = Stack(place)
        for layer in made:
            stack.add(*layer)
        if stack.trees:
            stack.check_mounted()
    finally:
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def memory_once(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    need_filesystem("erofs")
    with indexes.memory(tmp_path_factory.mktemp("layers") / "memory") as place:
        yield place
