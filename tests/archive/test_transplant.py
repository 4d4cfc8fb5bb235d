"""A layer of one format made from a directory of another, by links and by copies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.archive.stack import walk
from lamina.archive.survey import survey
from lamina.archive.transplant import Foreign, transplant
from lamina.archive.whiteout import AUFS, OVERLAY, Format
from lamina.kernel import xattr

pytestmark = pytest.mark.root


def _source(top: Path) -> Path:
    (top / "dir/deep").mkdir(parents=True)
    (top / "dir/file").write_text("content\n")
    os.link(top / "dir/file", top / "dir/deep/link")
    (top / "dir/.wh.gone").touch()
    (top / "opaque").mkdir()
    (top / "opaque/.wh..wh..opq").touch()
    (top / "opaque/new").write_text("new\n")
    (top / "to").symlink_to("dir/file")
    os.mkfifo(top / "fifo")
    (top / ".wh..wh.aufs").touch()
    (top / ".wh..wh.plnk").mkdir()
    os.link(top / "dir/file", top / ".wh..wh.plnk/1.2")
    os.utime(top / "dir", ns=(1_000, 2_000))
    return top


def _nodes(top: Path, fmt: Format) -> list[tuple[bytes, str, bool, int]]:
    return [
        (node.path, node.kind.value, node.opaque, node.status.st_mtime_ns if node.status else 0)
        for node in walk([top], fmt)
    ]


@pytest.mark.parametrize("target", [OVERLAY, AUFS])
@pytest.mark.parametrize("linking", [True, False])
def test_the_layer_says_the_same(tmp_path: Path, target: Format, linking: bool) -> None:
    source = _source(tmp_path / "source")
    before = _nodes(source, AUFS)
    made = tmp_path / "made"
    made.mkdir()
    seen: list[int] = []
    layer = Foreign(source, AUFS, source if linking else None)
    assert transplant(layer, made, target, progress=seen.append) == len("content\nnew\n")
    assert sum(seen) == len("content\nnew\n")
    assert _nodes(made, target) == before == _nodes(source, AUFS)
    assert (made / "dir/file").samefile(made / "dir/deep/link")
    assert (made / "dir/file").samefile(source / "dir/file") == linking


def test_what_the_target_would_read_as_marks_is_left_out_with_a_warning(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    made.mkdir()
    os.mknod(source / "zero", 0o20600, 0)
    (source / "f").write_text("1\n")
    xattr.set(os.fsencode(source / "f"), "trusted.overlay.redirect", b"/x")
    warnings: list[str] = []
    transplant(Foreign(source, AUFS, source), made, OVERLAY, warn=warnings.append)
    assert os.listdir(made) == ["f"]
    assert os.listxattr(made / "f") == []
    assert warnings == ["left out, since it would be read as a whiteout: zero"]


def test_names_that_aufs_can_not_hold_are_left_out_with_a_warning(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    made.mkdir()
    for name in (".wh.x", ".wh.", ".wh..wh.y", "x"):
        (source / name).write_text(name)
    warnings: list[str] = []
    transplant(Foreign(source, OVERLAY, source), made, AUFS, warn=warnings.append)
    assert os.listdir(made) == ["x"]
    assert len(warnings) == 3


def test_a_survey_counts_and_names_what_is_odd(tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    found = survey(source)
    assert (found.directories, found.size, found.odd, found.hidden) == (4, 12, [], False)
    (source / "dir/gone").write_text("x")
    (source / ".wh.").touch()
    found = survey(source)
    assert found.hidden
    assert sorted(name for name, _ in found.odd) == [b".wh.", b"dir/.wh.gone"]
