"""Turning one whiteout format into another, on layers that real mounts wrote."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, permutations
from pathlib import Path

import pytest

from lamina.archive.convert import convert
from lamina.archive.stack import walk
from lamina.archive.whiteout import AUFS, FORMATS, OVERLAY, OVERLAY_USER, Format
from lamina.errors import InvalidArchive, LayerBroken
from lamina.kernel import xattr
from lamina.kernel.mount import unmount
from tests.archive.layers import Operation, difference, disturb, make, overlay, replace, symlink
from tests.support import need

pytestmark = pytest.mark.root
PAIRS = list(permutations(FORMATS.values(), 2))
BETWEEN_ANY_TWO = pytest.mark.parametrize(
    ("source", "target"), PAIRS, ids=[f"{a.name} to {b.name}" for a, b in PAIRS]
)


def view(layers: Sequence[Path], fmt: Format) -> list[tuple[bytes, str, bool, int]]:
    return [(n.path, n.kind.value, n.opaque, n.layer) for n in walk(layers, fmt)]


def copy(layer: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", layer, target], check=True)
    return target


def written_by_the_kernel(tmp_path: Path, rng: random.Random, *without: Operation) -> list[Path]:
    """Four layers, topmost first, in overlayfs format."""
    layers = [tmp_path / "0"]
    layers[0].mkdir()
    disturb(layers[0], rng, 30, *without)
    for number in range(1, 4):
        upper = tmp_path / str(number)
        with overlay(tmp_path / "merged", layers, upper) as merged:
            disturb(merged, rng, 15, *without)
        layers.insert(0, upper)
    return layers


@contextmanager
def fuse(target: Path, lowers: Sequence[Path]) -> Iterator[Path]:
    """fuse-overlayfs, which reads AUFS whiteouts."""
    need("fuse-overlayfs")
    target.mkdir()
    lowerdir = ":".join(map(str, lowers))
    subprocess.run(["fuse-overlayfs", "-o", f"lowerdir={lowerdir}", target], check=True)
    try:
        yield target
    finally:
        unmount(target)


@pytest.mark.parametrize("seed", range(10))
def test_what_a_mount_shows_stays_the_same(tmp_path: Path, seed: int) -> None:
    layers = written_by_the_kernel(tmp_path, random.Random(seed))
    converted = [copy(layer, tmp_path / f"{layer.name}.copy") for layer in layers]
    with overlay(tmp_path / "old", layers) as old:
        for source, target in pairwise((OVERLAY, AUFS, OVERLAY_USER, OVERLAY)):
            for layer in converted:
                convert(layer, source, target)
            assert view(converted, target) == view(layers, OVERLAY)
            if target is not AUFS:
                user = target is OVERLAY_USER
                with overlay(tmp_path / target.name, converted, user=user) as new:
                    assert difference(new, old) == []


@pytest.mark.parametrize("seed", range(5))
def test_fuse_overlayfs_shows_converted_layers_as_the_kernel_does(
    tmp_path: Path, seed: int
) -> None:
    # fuse-overlayfs 1.10 fails with ENOMEM on a directory over a symbolic link or FIFO.
    layers = written_by_the_kernel(tmp_path, random.Random(seed), symlink, replace)
    branches = [copy(layer, tmp_path / f"{layer.name}.copy") for layer in layers]
    for branch in branches:
        convert(branch, OVERLAY, AUFS)
    with overlay(tmp_path / "old", layers) as old, fuse(tmp_path / "new", branches) as new:
        assert difference(new, old) == []


@BETWEEN_ANY_TWO
def test_view_and_times_stay(tmp_path: Path, source: Format, target: Format) -> None:
    top = make(tmp_path / "1", source, "d/!", "d/x", "-d/gone", "e/y", "-e/z", "-f", "!", "e/o/!")
    for path in (top, top / "d", top / "e", top / "e/o"):
        os.utime(path, ns=(5, 1_234_567_891))
    before = view([top], source)
    convert(top, source, target)
    assert view([top], target) == before
    assert {p.stat().st_mtime_ns for p in (top, top / "d", top / "e", top / "e/o")} == {
        1_234_567_891
    }
    for path in (top, top / "d", top / "e", top / "e/o"):
        assert not [name for name in xattr.list_all(str(path)) if source.private_xattr(name)]


class Crashed(Exception):
    pass


@BETWEEN_ANY_TWO
def test_an_interrupted_conversion_can_be_run_again(
    tmp_path: Path, source: Format, target: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("d/!", "d/x", "e/y", "-e/z", "-e/zz", "-f", "e/o/!", "e/o/p")
    expected = view([make(tmp_path / "0", source, *lines)], source)
    calls = 0

    def after(count: int) -> None:
        """Let a crash happen before the ``count``-th call that changes anything."""
        nonlocal calls
        calls = 0
        for owner, name in (
            (os, "unlink"), (os, "mknod"), (os, "setxattr"), (os, "removexattr"), (os, "utime"),
        ):  # fmt: skip
            real = getattr(owner, name)

            def crashing(*args: object, real: object = real, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls == count:
                    raise Crashed
                assert callable(real)
                return real(*args, **kwargs)

            monkeypatch.setattr(owner, name, crashing)

    for count in range(1, 200):
        top = make(tmp_path / str(count), source, *lines)
        after(count)
        try:
            convert(top, source, target)
        except Crashed:
            monkeypatch.undo()
            convert(top, source, target)
            assert view([top], target) == expected
        else:
            monkeypatch.undo()
            break
    assert 5 < count < 199


@pytest.mark.parametrize("target", [OVERLAY, OVERLAY_USER], ids=lambda f: f.name)
def test_what_aufs_does_not_show_goes(tmp_path: Path, target: Format) -> None:
    top = make(tmp_path / "1", AUFS, "live/inner/x", "-live", "file", "-file", "kept", "!")
    (top / ".wh..wh.aufs").touch()
    (top / ".wh..wh.plnk").mkdir()
    (top / ".wh..wh.plnk" / "15.16").touch()
    (top / ".wh..wh.orph").mkdir()
    before = view([top], AUFS)
    convert(top, AUFS, target)
    assert view([top], target) == before
    assert sorted(p.name for p in top.iterdir()) == ["file", "kept", "live"]
    assert stat.S_ISCHR((top / "live").stat().st_mode)


def test_a_whiteout_by_attribute_becomes_one_by_device(tmp_path: Path) -> None:
    top = make(tmp_path / "1", OVERLAY, "d/x")
    (top / "d" / "gone").touch()
    xattr.set(top / "d" / "gone", "trusted.overlay.whiteout", b"y")
    xattr.set(top / "d", "trusted.overlay.opaque", b"x")
    before = view([top], OVERLAY)
    assert (b"d/gone", "whiteout", False, 0) in before
    for source, target in ((OVERLAY, OVERLAY_USER), (OVERLAY_USER, AUFS)):
        convert(top, source, target)
        assert view([top], target) == before
    assert sorted(p.name for p in (top / "d").iterdir()) == [".wh.gone", "x"]


def test_what_fuse_overlayfs_wrote_becomes_aufs(tmp_path: Path) -> None:
    need("fuse-overlayfs")
    lower = make(tmp_path / "0", AUFS, "d/x", "e/y", "f")
    upper, work, target = tmp_path / "1", tmp_path / "work", tmp_path / "m"
    for path in (upper, work, target):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["fuse-overlayfs", "-o", options, target], check=True)
    try:
        shutil.rmtree(target / "d")
        (target / "d").mkdir()
        (target / "d" / "new").touch()
        (target / "f").unlink()
        (target / "e" / "y").unlink()
    finally:
        unmount(target)
    convert(upper, OVERLAY, AUFS)
    assert view([upper], AUFS) == [
        (b"", "entry", False, 0),
        (b"f", "whiteout", False, 0),
        (b"d", "entry", True, 0),
        (b"d/new", "entry", False, 0),
        (b"e", "entry", False, 0),
        (b"e/y", "whiteout", False, 0),
    ]
    assert not (upper / "d" / ".wh..opq").exists()


@pytest.mark.parametrize("mark", ["redirect", "metacopy"])
def test_a_layer_that_leans_on_another_is_refused(tmp_path: Path, mark: str) -> None:
    top = make(tmp_path / "1", OVERLAY, "d/x")
    xattr.set(top / "d" / "x", f"trusted.overlay.{mark}", b"")
    with pytest.raises(LayerBroken, match=f"part of 'd/x' is in another layer.*{mark}"):
        convert(top, OVERLAY, AUFS)


@pytest.mark.parametrize("name", [".wh.x", ".wh.", ".wh..wh..opq"])
def test_a_file_that_is_truly_called_like_a_mark_is_refused_before_anything_changes(
    tmp_path: Path, name: str
) -> None:
    top = tmp_path / "layer"
    (top / "d").mkdir(parents=True)
    os.mknod(top / "gone", 0o20600, 0)
    (top / "d" / name).write_text("a file\n")
    with pytest.raises(InvalidArchive, match="mark of its own"):
        convert(top, OVERLAY, AUFS)
    assert sorted(path.name for path in top.rglob("*")) == sorted(["gone", "d", name])
    assert (top / "d" / name).read_text() == "a file\n"
