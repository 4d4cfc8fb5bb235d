"""Whatever is done on a mounted overlay, folding its upper directory gives the same tree."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamina.archive.copytree import copy_tree
from lamina.archive.fold import fold, squash
from lamina.archive.pack import pack
from lamina.archive.unpack import unpack
from lamina.archive.whiteout import AUFS, OVERLAY
from tests import support
from tests.archive.test_fold import overlay
from tests.archive.trees import describe, differences

pytestmark = pytest.mark.root

NAMES = ["a", "b", "c", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/a/b"]
Step = tuple[str, str, str]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "append", "mkdir", "remove", "symlink", "link", "rename", "chmod", "fifo"]
        ),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
    ),
    max_size=12,
)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write(path: Path, text: str) -> None:
    """Write, but not to a FIFO, which nobody reads."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
    with open(path, "w", opener=lambda name, _: os.open(name, flags, 0o644)) as file:
        file.write(text)


DO: dict[str, Callable[[Path, Path], object]] = {
    "write": lambda one, other: _write(one, f"{one.name} {other.name}"),
    "append": lambda one, other: os.truncate(one, 3),
    "mkdir": lambda one, other: one.mkdir(),
    "remove": lambda one, other: _remove(one),
    "symlink": lambda one, other: one.symlink_to(other.name),
    "link": lambda one, other: os.link(one, other, follow_symlinks=False),
    "rename": lambda one, other: one.rename(other),
    "chmod": lambda one, other: one.chmod(0o6711) if not one.is_symlink() else None,
    "fifo": lambda one, other: os.mkfifo(one),
}


def play(root: Path, steps: list[Step]) -> None:
    """Do what can be done of the steps."""
    for what, one, other in steps:
        try:
            DO[what](root / one, root / other)
        except OSError:
            pass


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(before=STEPS, first=STEPS, second=STEPS)
def test_folding_an_upper_gives_what_the_kernel_showed(
    tmp_path: Path, before: list[Step], first: list[Step], second: list[Step]
) -> None:
    ground = tmp_path / "ground"
    support.run("rm", "-rf", ground)
    ground.mkdir()
    bottom, one, two = (ground / name for name in ("bottom", "one", "two"))
    bottom.mkdir()
    play(bottom, before)
    with overlay(ground / "m1", [bottom], one) as root:
        play(root, first)
    with overlay(ground / "m2", [one, bottom], two) as root:
        play(root, second)
        shown = describe(root)

    def check(tree: Path) -> None:
        found = describe(tree)
        found[b""].pop("mtime") if "mtime" not in shown[b""] else None
        assert differences(found, shown) == []

    copy_tree(bottom, ground / "folded")
    fold([two, one], OVERLAY, ground / "folded")
    check(ground / "folded")

    copy_tree(bottom, ground / "in-turn")
    fold([one], OVERLAY, ground / "in-turn")
    fold([two], OVERLAY, ground / "in-turn")
    check(ground / "in-turn")

    squash([two, one], OVERLAY, ground / "squashed", lowers=[bottom])
    copy_tree(bottom, ground / "over-squashed")
    fold([ground / "squashed"], OVERLAY, ground / "over-squashed")
    check(ground / "over-squashed")
    with overlay(ground / "m3", [ground / "squashed", bottom]) as root:
        assert differences(describe(root), shown) == []

    del shown[b""]["mtime"]  # pack leaves the top out when nothing but that is new
    for fmt in (OVERLAY, AUFS):
        tar = ground / f"{fmt.name}.tar"
        with tar.open("wb") as sink:
            for piece in pack([two, one], fmt=OVERLAY, lowers=[bottom]):
                sink.write(piece)
        layer = ground / f"unpacked-{fmt.name}"
        layer.mkdir()
        with tar.open("rb") as stream:
            unpack(stream, layer, fmt=fmt, lowers=[bottom])
        copy_tree(bottom, ground / f"over-{fmt.name}")
        fold([layer], fmt, ground / f"over-{fmt.name}", move=True)
        check(ground / f"over-{fmt.name}")
