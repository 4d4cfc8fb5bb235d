"""Holes: where they are found and made, whatever the file system."""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive.pack import PackOptions, pack_tree
from lamina.archive.tar import TarReader
from lamina.archive.unpack import unpack
from lamina.archive.whiteout import OVERLAY
from lamina.archive.zeros import RUN, data_pieces, write_punched
from lamina.kernel.copy import data_ranges
from tests import support
from tests.archive.test_xattrs import by_umoci
from tests.support import need, run

SIZE = 6 << 20


def content() -> bytes:
    """Data of odd lengths at odd places, zeros that fill a run and zeros that don't."""
    data = bytearray(SIZE)
    for offset, length in ((0, 1), (RUN - 1, 2), (20 * RUN + 4097, 10), (40 * RUN, RUN)):
        data[offset : offset + length] = b"d" * length
    data[60 * RUN :: 512] = b"x" * len(data[60 * RUN :: 512])
    return bytes(data) + b"the last run is short"


def written(path: Path, how: str) -> None:
    """A file with this content, its blocks allocated in one way or another."""
    data = content()
    with path.open("wb") as out:
        if how == "dense":
            out.write(data)
        elif how == "copied":
            step = 4096
        elif how == "preallocated":
            os.posix_fallocate(out.fileno(), 0, len(data))
            step = RUN
        elif how == "punched late":
            out.write(data)
            out.flush()
            step = 0
        if how in ("copied", "preallocated"):
            out.truncate(len(data))
            for offset in range(0, len(data), step):
                if data[offset : offset + step].strip(b"\0"):
                    out.seek(offset)
                    out.write(data[offset : offset + step])
    if how == "punched late":
        run("fallocate", "--dig-holes", path)
    assert path.read_bytes() == data


def packed(top: Path, sparse: bool) -> bytes:
    for directory, _, names in os.walk(top):
        for name in names:
            os.utime(Path(directory, name), (0, 0))
        os.utime(directory, (0, 0))
    os.chmod(top, 0o755)
    return b"".join(bytes(c) for c in pack_tree(top, options=PackOptions(sparse=sparse)))


@pytest.mark.root
@pytest.mark.parametrize("sparse", [True, False])
def test_the_same_content_is_the_same_tar_on_any_file_system(
    ext4: Path, xfs: Path, btrfs: Path, tmpfs: Path, sparse: bool
) -> None:
    need("fallocate")
    tars, holes = set(), set()
    for place in (ext4, xfs, btrfs, tmpfs):
        for how in ("dense", "copied", "preallocated", "punched late"):
            top = place / how
            top.mkdir()
            written(top / "f", how)
            with (top / "f").open("rb") as file:
                holes.add(tuple(data_ranges(file.fileno(), file.seek(0, 2))))
            tars.add(packed(top, sparse))
    assert len(holes) > 2, "what is a hole depends on how and where a file was written"
    assert len(tars) == 1
    assert (len(tars.pop()) < SIZE) is sparse


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    if not support.is_root():
        support.missing("needs root (with the right to mount)")
    (tmp_path / "tmpfs").mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", tmp_path / "tmpfs")
    yield tmp_path / "tmpfs"
    run("umount", tmp_path / "tmpfs")


@given(
    runs=st.lists(st.sampled_from([b"", b"\1", bytes(7) + b"\1", b"a" * RUN]), max_size=40),
    tail=st.sampled_from([b"", b"\0", b"a", bytes(RUN - 1)]),
    cuts=st.lists(st.integers(1, 40 * RUN), max_size=6),
)
@settings(max_examples=40, deadline=None)
def test_pieces_and_holes_add_up(runs: list[bytes], tail: bytes, cuts: list[int]) -> None:
    data = b"".join(part.ljust(RUN, b"\0") for part in runs) + tail
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    with tempfile.TemporaryFile() as out:
        view = memoryview(data)
        write_punched(out.fileno(), (view[a:b] for a, b in pairwise(places)))
        assert os.pread(out.fileno(), len(data) + 1, 0) == data
        pieces = data_pieces(out.fileno(), len(data))
    expected = [n for n, part in enumerate([*runs, *[tail] * bool(tail)]) if part.strip(b"\0")]
    assert [n for at, length in pieces for n in range(at // RUN, -(-(at + length) // RUN))] == (
        expected
    )
    assert all(at % RUN == 0 and length > 0 for at, length in pieces)
    assert all(sum(a) < b[0] for a, b in pairwise(pieces)), "merged"


def test_a_file_that_became_shorter_is_read_as_zeros(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w+b") as out:
        out.write(b"a" * (RUN + 5))
        out.flush()
        assert data_pieces(out.fileno(), 8 * RUN) == [(0, 2 * RUN)]


def test_too_many_pieces_are_stored_without_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.archive.pack._MOST_PIECES", 3)
    for count, sparse in ((3, True), (4, False)):
        (tmp_path / "f").write_bytes(b"".join(b"a" + bytes(2 * RUN - 1) for _ in range(count)))
        entries = TarReader(io.BytesIO(packed(tmp_path, sparse=True)))
        assert [e.sparse is not None for e in entries if e.name == b"f"] == [sparse]


@pytest.mark.root
@pytest.mark.parametrize("reader", ["tar", "bsdtar", "umoci", "podman", "lamina"])
def test_what_readers_make_of_a_sparse_tar(reader: str, ext4: Path) -> None:
    """All get the content; GNU tar, bsdtar and Lamina also the holes."""
    need(reader if reader != "lamina" else "tar")
    (ext4 / "tree").mkdir()
    written(ext4 / "tree/f", "copied")
    tar, out = ext4 / "f.tar", ext4 / "out"
    tar.write_bytes(packed(ext4 / "tree", sparse=True))
    out.mkdir()
    if reader == "lamina":
        unpack(io.BytesIO(tar.read_bytes()), out, fmt=OVERLAY)
    elif reader == "umoci":
        out = by_umoci(tar, ext4)
    elif reader == "podman":
        out = by_podman(tar, ext4)
    else:
        run(reader, "-xf", tar, "-C", out)
    found = out / "f"
    assert found.read_bytes() == content()
    if reader in ("tar", "bsdtar", "lamina"):
        assert found.stat().st_blocks * 512 < SIZE / 2


def by_podman(tar: Path, ground: Path) -> Path:
    """The file system of an image that ``podman import`` makes."""
    # The path of its run root has 50 characters at most, unlike one below TMPDIR.
    with tempfile.TemporaryDirectory(prefix="lamina-tests-", dir="/run") as short:
        places = ("--root", ground / "root", "--runroot", short, "--tmpdir", ground / "tmp")
        podman = ("podman", *places, "--storage-driver", "vfs")
        run(*podman, "import", tar, "sparse:1")
    (layer,) = (ground / "root/vfs/dir").iterdir()
    return layer


@pytest.mark.root
@pytest.mark.parametrize("how", ["gnu", "pax 0.0", "pax 0.1", "pax 1.0", "bsdtar"])
def test_holes_of_other_tars_are_made_again(how: str, ext4: Path) -> None:
    (ext4 / "tree").mkdir()
    written(ext4 / "tree/f", "copied")
    if how == "bsdtar":
        need("bsdtar")
        argv = ["bsdtar", "--read-sparse", "--format=pax"]
    else:
        form, _, version = how.partition(" ")
        argv = [
            "tar",
            "--sparse",
            f"--format={form}",
            *[f"--sparse-version={version}"] * bool(version),
        ]
    tar = subprocess.run(
        [*argv, "-cf", "-", "-C", ext4 / "tree", "f"], stdout=-1, check=True
    ).stdout
    assert len(tar) < SIZE / 2
    (ext4 / "out").mkdir()
    unpack(io.BytesIO(tar), ext4 / "out", fmt=OVERLAY)
    assert (ext4 / "out/f").read_bytes() == content()
    assert (ext4 / "out/f").stat().st_blocks * 512 < SIZE / 2
