"""Archives taken apart and put together again, against records that Docker wrote."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from fastcrc.crc64 import go_iso
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamina.archive.compression import open_stream
from lamina.archive.split import SplitRecorder, assemble
from lamina.archive.tar import TarReader
from lamina.archive.unpack import UnpackOptions, unpack
from lamina.archive.whiteout import AUFS
from lamina.errors import LayerBroken
from tests.support import need

Opener = Callable[[bytes], BinaryIO]
DATA = Path(__file__).parent / "data"


def record(data: bytes, *, unpack: Path | None = None) -> bytes:
    """The records of an archive, whose files are written below ``unpack``."""
    sink = io.BytesIO()
    with SplitRecorder(sink) as recorder:
        reader = TarReader(io.BytesIO(data), observer=recorder)
        for entry in reader:
            if unpack is not None and entry.size and not entry.linkname:
                write(recorder, reader, unpack / os.fsdecode(entry.name.lstrip(b"/")))
        recorder.finish()
    return sink.getvalue()


def write(recorder: SplitRecorder, reader: TarReader, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("rb") as old:
            recorder.superseded(os.fsencode(path.name), old.fileno())
        path.unlink()
    with path.open("wb") as file:
        reader.copy_to(file.fileno())


def opener(root: Path) -> Opener:
    return lambda name: (root / os.fsdecode(name.lstrip(b"/"))).open("rb")


def assembled(records: bytes, open_file: Opener) -> bytes:
    return b"".join(assemble(io.BytesIO(records), open_file, layer="test"))


def parsed(records: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(records).splitlines()]


def by_tar_split(records: bytes, open_file: Opener) -> bytes:
    """What tar-split's own assembler does (tar/asm/assemble.go, tar/storage/packer.go)."""
    out, seen = [], set()
    for entry in parsed(records):
        payload = base64.b64decode(entry["payload"] or "")
        if entry["type"] == 2:
            out.append(payload)
            continue
        name = (
            base64.b64decode(entry["name_raw"]) if "name_raw" in entry else entry["name"].encode()
        )
        clean = os.path.normpath(name)
        assert clean not in seen, "duplicates of file paths not supported"
        seen.add(clean)
        if entry.get("size", 0):
            with open_file(name) as file:
                content = file.read()
            assert go_iso(content).to_bytes(8, "big") == payload, "file integrity checksum failed"
            out.append(content)
    assert [entry["position"] for entry in parsed(records)] == list(range(len(parsed(records))))
    return b"".join(out)


def archive(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def file(name: str, content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


# -- what Docker wrote


Layer = tuple[bytes, bytes]  # the archive, Docker's records


@pytest.fixture(scope="module")
def docker_layers() -> list[Layer]:
    """Layers that Docker 20.10 wrote (data/README.md)."""
    members = {}
    with (
        open_stream(DATA / "docker-20.10-layers.tar.zst") as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            members[member.name] = content.read()
    ids = sorted({name.split("/")[0] for name in members})
    return [(members[f"{i}/layer.tar"], members[f"{i}/tar-split.json.gz"]) for i in ids]


def test_dockers_records_and_the_files_give_the_original_archives(
    docker_layers: list[Layer], tmp_path: Path
) -> None:
    assert len(docker_layers) == 8
    for number, (data, records) in enumerate(docker_layers):
        root = tmp_path / str(number)
        record(data, unpack=root)
        assert assembled(records, opener(root)) == data


def test_our_records_of_the_same_archives_are_dockers_field_by_field(
    docker_layers: list[Layer], tmp_path: Path
) -> None:
    for number, (data, records) in enumerate(docker_layers):
        root = tmp_path / str(number)
        ours = record(data, unpack=root)
        # The version of tar-split in this Docker adds an empty segment at the very end.
        theirs = [entry for entry in parsed(records) if entry["payload"] != ""]
        assert parsed(ours) == theirs
        assert by_tar_split(ours, opener(root)) == data


@pytest.mark.root
def test_a_whole_store_of_dockers_is_assembled_from_its_own_directories(tmp_path: Path) -> None:
    """``LAMINA_DOCKER_AUFS``: a directory with a Docker root and ``docker save`` in ``images/``."""
    store = os.environ.get("LAMINA_DOCKER_AUFS")
    if not store:
        pytest.skip("LAMINA_DOCKER_AUFS names no store written by Docker")
    docker = Path(store)
    archives = {}
    for manifest in json.loads((docker / "images/manifest.json").read_text()):
        config = json.loads((docker / "images" / manifest["Config"]).read_text())
        for diff_id, path in zip(config["rootfs"]["diff_ids"], manifest["Layers"], strict=True):
            archives[diff_id] = (docker / "images" / path).read_bytes()
    for layer in (docker / "image/aufs/layerdb/sha256").iterdir():
        diff = docker / "aufs/diff" / (layer / "cache-id").read_text()
        records = (layer / "tar-split.json.gz").read_bytes()
        assert assembled(records, opener(diff)) == archives[(layer / "diff").read_text()]


# -- round trips


def round_trip(data: bytes, root: Path) -> bytes:
    """Assembled here and as tar-split does it; the records."""
    records = record(data, unpack=root)
    assert assembled(records, opener(root)) == data
    assert by_tar_split(records, opener(root)) == data
    return records


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_entry(form: int, tmp_path: Path) -> None:
    names = [
        "plain",
        "a/" + "long/" * 10 + "name",
        'quote"back\\slash\nnewline',
        "ünïcode",
        "\U0001f40d",
    ]
    members = [file(name, name.encode()) for name in names]
    members += [
        file("empty"),
        special("dir", tarfile.DIRTYPE),
        special("link", tarfile.SYMTYPE, "plain"),
        special("hard", tarfile.LNKTYPE, "plain"),
        special("null", tarfile.CHRTYPE),
        special("fifo", tarfile.FIFOTYPE),
        file("blocks", bytes(1024)),
        file("latin1-\udce9", b"x"),
    ]
    entries = parsed(round_trip(archive(*members, form=form), tmp_path))
    named = [entry for entry in entries if entry["type"] == 1]
    assert len(named) == len(members)
    assert base64.b64decode(named[-1]["name_raw"]) == b"latin1-\xe9"
    assert [entry["name"] for entry in named[: len(names)]] == names


def test_padding_is_split_into_bounded_pieces(tmp_path: Path) -> None:
    data = archive(file("a", b"x")) + bytes(5_000_000)
    entries = parsed(round_trip(data, tmp_path))
    assert max(len(entry["payload"] or "") for entry in entries) <= 1.4 * (1 << 20)


def test_bytes_after_the_end_are_kept_whatever_they_are(tmp_path: Path) -> None:
    round_trip(archive(file("a", b"x")) + b"not padding", tmp_path)


def test_an_archive_without_end_mark(tmp_path: Path) -> None:
    round_trip(archive(file("a", b"x" * 512))[:1024], tmp_path)


def test_an_archive_without_its_last_padding(tmp_path: Path) -> None:
    """As ``umoci insert`` writes it."""
    round_trip(archive(file("a", b"x" * 100))[: 512 + 100], tmp_path)


def test_an_archive_of_nothing(tmp_path: Path) -> None:
    round_trip(bytes(10240), tmp_path)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=120).filter(lambda n: not {0, 47} & set(n)),
            st.binary(max_size=2000),
        ),
        max_size=8,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_names_and_contents(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[bytes, bytes]], form: int
) -> None:
    members = [file("d/" + os.fsdecode(name), content) for name, content in files]
    round_trip(archive(*members, form=form), tmp_path_factory.mktemp("any"))


# -- what tar-split can't record


def test_replaced_files_keep_their_content(tmp_path: Path) -> None:
    big = bytes(range(256)) * 10_000
    data = archive(
        file("a", b"first"),
        file("keep", b"kept"),
        file("a", big),
        special("a", tarfile.DIRTYPE),
        file("b/c", b"first"),
        file("./a", b"third"),
        special("b", tarfile.DIRTYPE),
        special("b", tarfile.DIRTYPE),
    )
    entries = parsed(round_trip(data, tmp_path))
    names = [entry["name"] for entry in entries if entry["type"] == 1]
    assert names == ["keep", "a", "b/"] or names == ["keep", "./a", "b/"]
    assert max(len(entry["payload"] or "") for entry in entries) <= 1.4 * (1 << 20)


def test_contents_of_whiteouts_and_hard_links_are_in_the_records(tmp_path: Path) -> None:
    link, _ = special("hard", tarfile.LNKTYPE, "a")
    data = archive(file("a", b"content"), file("d/.wh.gone", b"odd"), (link, b""))
    records = record(data, unpack=tmp_path)
    (tmp_path / "d/.wh.gone").unlink()
    assert assembled(records, opener(tmp_path)) == data
    assert by_tar_split(records, opener(tmp_path)) == data


def sparse_archive(root: Path, size: int, *, form: str) -> bytes:
    need("tar")
    with (root / "sparse").open("wb") as hole:
        for offset in (0, 3 << 20, 9 << 20):
            hole.seek(offset)
            hole.write(os.urandom(size))
        hole.truncate(20 << 20)
    argv = ["tar", "-C", str(root), "--sparse", *form.split(), "-cf", "-", "sparse"]
    data = subprocess.run(argv, capture_output=True, check=True).stdout
    assert len(data) < 10 << 20
    return data


FORMS = ["--format=gnu", *(f"--format=pax --sparse-version={v}" for v in ("0.0", "0.1", "1.0"))]


@pytest.mark.parametrize("form", FORMS)
def test_small_sparse_files_can_be_assembled_by_tar_split_too(form: str, tmp_path: Path) -> None:
    data = sparse_archive(tmp_path, 4096, form=form)
    (tmp_path / "out").mkdir()
    round_trip(data, tmp_path / "out")


@pytest.mark.parametrize("form", FORMS)
def test_large_sparse_files_are_read_from_the_file(form: str, tmp_path: Path) -> None:
    data = sparse_archive(tmp_path, 2 << 20, form=form)
    (tmp_path / "out").mkdir()
    records = record(data, unpack=tmp_path / "out")
    assert len(records) < 10_000
    assert assembled(records, opener(tmp_path / "out")) == data


def test_a_large_sparse_file_that_was_replaced(tmp_path: Path) -> None:
    data = sparse_archive(tmp_path, 2 << 20, form="--format=gnu")
    data = data.rstrip(b"\0")
    data += bytes(-len(data) % 512) + archive(file("sparse", b"small"))
    (tmp_path / "out").mkdir()
    round_trip(data, tmp_path / "out")


def really_unpacked(data: bytes, root: Path) -> bytes:
    """The records, made while the archive is unpacked as a layer."""
    root.mkdir()
    sink = io.BytesIO()
    with SplitRecorder(sink) as recorder:
        reader = TarReader(io.BytesIO(data), observer=recorder)
        unpack(reader, root, fmt=AUFS, options=UnpackOptions(on_superseded=recorder.superseded))
        recorder.finish()
    return sink.getvalue()


@pytest.mark.root
def test_whatever_unpacking_removes_again_is_in_the_records(tmp_path: Path) -> None:
    directory, symlink, hardlink = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    data = archive(
        special("real", directory),
        special("alias", symlink, "real"),
        file("alias/file", b"through the link"),
        file("real/file", b"by its own name"),
        file("tree/a/b", b"below what becomes a file"),
        file("tree/c", b"this too"),
        file("tree", b"a file now"),
        file("two", b"of two names"),
        special("names", hardlink, "two"),
        file("two", b"of one name"),
        file("same", b"the same twice"),
        file("same", b"the same twice"),
        file("gone", b"becomes a link"),
        special("gone", symlink, "two"),
        file("d/.wh.two", b""),
        file("empty"),
        file("empty", b"not empty"),
        special("real", directory),
    )
    records = really_unpacked(data, tmp_path / "layer")
    assert assembled(records, opener(tmp_path / "layer")) == data
    assert by_tar_split(records, opener(tmp_path / "layer")) == data


# -- what is damaged


@pytest.fixture
def layer(tmp_path: Path) -> tuple[bytes, bytes, Path]:
    data = archive(file("etc/motd", b"hello\n"), file("big", b"x" * 3_000_000))
    return data, record(data, unpack=tmp_path), tmp_path


@pytest.mark.parametrize("content", [b"hullo\n", b"hello\n\n", b"hello", b""])
def test_a_changed_file_is_named(layer: tuple[bytes, bytes, Path], content: bytes) -> None:
    _, records, root = layer
    (root / "etc/motd").write_bytes(content)
    with pytest.raises(LayerBroken, match="file 'etc/motd' is not what it was"):
        assembled(records, opener(root))


def test_a_file_that_grew_without_bound_is_not_read_to_its_end(
    layer: tuple[bytes, bytes, Path],
) -> None:
    _, records, root = layer
    os.truncate(root / "etc/motd", 1 << 40)
    with pytest.raises(LayerBroken, match="etc/motd"):
        assembled(records, opener(root))


def test_a_missing_file_is_named(layer: tuple[bytes, bytes, Path]) -> None:
    _, records, root = layer
    (root / "etc/motd").unlink()
    with pytest.raises(LayerBroken, match="file 'etc/motd' is missing"):
        assembled(records, opener(root))


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'{"type":',
        b'{"type":3,"payload":null}',
        b'{"payload":"AA=="}',
        b'{"type":2,"payload":"%%%"}',
        b'{"type":2,"payload":5}',
        b'{"type":1,"name":"a","size":-1,"payload":null}',
        b'{"type":1,"name":"a","size":"many","payload":null}',
        b'{"type":1,"name":"\\ud800","size":1,"payload":null}',
        b'{"type":1,"name":"\xff","size":1,"payload":null}',
        b'{"type":1,"name":"a","size":2,"sparse":[[0,1],[0,1]],"payload":null}',
        b'{"type":1,"name":"a","size":3,"sparse":[[0,1],[4,1]],"payload":null}',
        b'{"type":1,"name":"a","size":1,"sparse":[[-5,1]],"payload":null}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_records_that_are_none_are_refused(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(LayerBroken, match="layer test is broken"):
        assembled(gzip.compress(b'{"type":2,"payload":""}\n' + line + b"\n"), opener(tmp_path))


def test_damaged_and_truncated_records_are_refused(layer: tuple[bytes, bytes, Path]) -> None:
    data, records, root = layer
    for end in range(20, len(records), 7):
        with pytest.raises(LayerBroken):
            assembled(records[:end], opener(root))
    for position in range(10, len(records)):
        broken = bytearray(records)
        broken[position] ^= 0x55
        try:
            assert assembled(bytes(broken), opener(root)) == data
        except LayerBroken:
            continue


def test_records_without_end_of_line_are_bounded() -> None:
    bomb = gzip.compress(b'{"type":2,"payload":"' + b"A" * (100 << 20))
    tracemalloc.start()
    with pytest.raises(LayerBroken):
        assembled(bomb, lambda name: io.BytesIO())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300 << 20


def test_assembling_streams(tmp_path: Path) -> None:
    data = archive(*(file(f"f{i}", os.urandom(4 << 20)) for i in range(8)))
    records = record(data, unpack=tmp_path)
    del data
    tracemalloc.start()
    for _ in assemble(io.BytesIO(records), opener(tmp_path), layer="test"):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 << 20


def test_stopping_early_closes_everything(layer: tuple[bytes, bytes, Path]) -> None:
    _, records, root = layer
    pieces = assemble(io.BytesIO(records), opener(root), layer="test")
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
