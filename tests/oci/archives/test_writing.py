"""Archives that we write: each of the others loads them, and finds the same layers."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import DigestMismatch, InvalidArchive, InvalidImage, InvalidName, LaminaError
from lamina.oci.archives import (
    DockerArchiveTarget,
    OciArchiveTarget,
    open_archive,
    replaced,
)
from lamina.oci.archives.docker import SavedLayout
from lamina.oci.content import verified
from lamina.oci.descriptor import described
from lamina.oci.layout import Layout
from tests import daemons, support
from tests.oci import images, peers

FULL = "docker.io/library/debian:12"
TARGETS = [OciArchiveTarget, DockerArchiveTarget]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.tar"


def written(
    target_class: type[OciArchiveTarget], *made: tuple[images.Made, str | None], path: Path
) -> Path:
    with path.open("wb") as file:
        target = target_class(file)
        for image, name in made:
            images.put(target, image, *([name] if name else []))
        target.close()
    return path


def opened(path: Path) -> Layout:
    found = open_archive(path, Path("/nonexistent"))
    assert isinstance(found, Layout)
    return found


@pytest.mark.parametrize("target_class", TARGETS)
def test_what_was_written_is_read(path: Path, target_class: type[OciArchiveTarget]) -> None:
    one, two = images.make({"a": b"a"}, {"b": b""}), images.make({"a": b"a"}, label="two")
    written(target_class, (one, "debian:12"), (two, "two:1"), (one, "one:1"), path=path)
    source = opened(path)
    assert [image.names for image in source.images()] == [
        (FULL, "docker.io/library/one:1"),
        ("docker.io/library/two:1",),
    ]
    assert images.diff_ids(source, "debian:12") == images.made_diff_ids(one)
    assert images.diff_ids(source, "two:1") == images.made_diff_ids(two)
    source.close()


def test_docker_s_names_are_as_docker_writes_them(path: Path) -> None:
    one, two = images.make({"a": b"a"}), images.make(label="two")
    digest = f"x@{one.top.digest}"
    written(
        DockerArchiveTarget,
        (one, "debian"),
        (one, FULL),
        (one, "reg.example.org/a:1"),
        (one, digest),
        (two, None),
        path=path,
    )
    with tarfile.open(path) as archive:
        file = archive.extractfile("manifest.json")
        assert file is not None
        first, second = json.load(file)
    assert first["RepoTags"] == ["debian:latest", "debian:12", "reg.example.org/a:1"]
    assert second["RepoTags"] is None
    source = opened(path)
    assert isinstance(source, SavedLayout)
    assert source.images()[1].names == ()
    assert images.diff_ids(source, digest) == images.made_diff_ids(one)
    source.close()


@pytest.mark.parametrize("target_class", TARGETS)
def test_the_same_images_are_the_same_bytes(
    tmp_path: Path, target_class: type[OciArchiveTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = images.make({"a": b"a"})
    first = written(target_class, (made, "a:1"), path=tmp_path / "1").read_bytes()
    assert written(target_class, (made, "a:1"), path=tmp_path / "2").read_bytes() == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with tarfile.open(written(target_class, (made, "a:1"), path=tmp_path / "3")) as archive:
        for member in archive:
            assert member.mtime == 1700000000
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert member.mode == (0o755 if member.isdir() else 0o644)


@pytest.mark.parametrize("bad", ["yesterday", "-5", "9" * 14])
def test_a_time_that_is_none_is_refused(
    tmp_path: Path, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", bad)
    with pytest.raises(LaminaError, match="SOURCE_DATE_EPOCH is no number"):
        OciArchiveTarget(io.BytesIO())


def test_a_path_that_can_not_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "missing/a.tar"
    with pytest.raises(FileNotFoundError, match=f"'{path}'"), replaced(path):
        pass


def test_a_pipe_is_written_to_without_buffering_a_blob() -> None:
    """The reader has most of a blob before its last byte exists."""
    reader, writer = os.pipe()
    size = 8 << 20
    descriptor = described(b"x" * size, "application/octet-stream")
    seen = threading.Event()

    def data() -> Iterator[bytes]:
        for number in range(8):
            if number == 7:
                assert seen.wait(30)
            yield b"x" * (1 << 20)

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.chunks = data()

        def read(self, size: int = -1) -> bytes:
            return next(self.chunks, b"")

    def read() -> None:
        with open(reader, "rb", buffering=0) as source:
            count = 0
            while chunk := source.read(1 << 16):
                count += len(chunk)
                if count > 6 << 20:
                    seen.set()

    thread = threading.Thread(target=read)
    thread.start()
    with open(writer, "wb", buffering=0) as sink:
        target = OciArchiveTarget(sink)
        target.put(descriptor, verified(Stream(), descriptor))  # type: ignore[arg-type]
        target.close()
    thread.join()
    assert seen.is_set()


def test_a_sink_that_takes_a_little_at_a_time(path: Path) -> None:
    class Slow:
        def __init__(self) -> None:
            self.data = bytearray()

        def write(self, data: bytes | memoryview, /) -> int:
            part = bytes(data[:100])
            self.data += part
            return len(part)

    made, sink = images.make({"a": b"a" * 1000}), Slow()
    target = OciArchiveTarget(sink)
    images.put(target, made, "a:1")
    target.close()
    path.write_bytes(sink.data)
    source = opened(path)
    assert images.diff_ids(source) == images.made_diff_ids(made)
    source.close()


def test_threads_may_write_at_once(path: Path) -> None:
    made = [images.make({"a": os.urandom(100_000)}, label=str(n)) for n in range(8)]
    with path.open("wb") as file:
        target = OciArchiveTarget(file)
        threads = [
            threading.Thread(target=images.put, args=(target, image, f"a:{n}"))
            for n, image in enumerate(made)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        target.close()
    source = opened(path)
    for n, image in enumerate(made):
        assert images.diff_ids(source, f"a:{n}") == images.made_diff_ids(image)
    source.close()


def test_a_blob_that_fails_spoils_the_archive(path: Path) -> None:
    """It must not look whole to anybody."""
    made = images.make()
    descriptor = described(b"right", "text/plain")
    with path.open("wb") as file:
        target = OciArchiveTarget(file)
        with pytest.raises(DigestMismatch):
            target.put(descriptor, verified(io.BytesIO(b"wrong"), descriptor))
        with pytest.raises(ValueError, match="spoiled"):
            target.put_manifest(made.top, made.data, "a:1")
        target.close()
    with pytest.raises(InvalidArchive):
        open_archive(path, path.parent)


def test_a_full_disk_is_an_os_error(tmpfs_small: Path) -> None:
    made = images.make({"a": os.urandom(8 << 20)})
    with pytest.raises(OSError, match="No space left"):
        written(OciArchiveTarget, (made, "a:1"), path=tmpfs_small / "x")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_docker_archive_has_no_compressed_layers(compression: str) -> None:
    made = images.make({"a": b"a"}, compression=compression)
    target = DockerArchiveTarget(io.BytesIO())
    layer, data = made.blobs[1]
    with pytest.raises(InvalidImage, match=f"{layer.digest} is compressed"):
        target.put(layer, io.BytesIO(data))
    with pytest.raises(InvalidImage, match="is compressed"):
        target.put_manifest(made.top, made.data, "a:1")


def test_a_docker_archive_has_no_indexes_and_no_bad_names() -> None:
    target = DockerArchiveTarget(io.BytesIO())
    one = images.make()
    made = images.index(one, architectures=["amd64"])
    with pytest.raises(InvalidImage, match="no indexes"):
        target.put_manifest(made.top, made.data, "a:1")
    with pytest.raises(InvalidName):
        target.put_manifest(one.top, one.data, "A:1")


# --- with others


@pytest.fixture
def made() -> images.Made:
    return images.make({"a": b"a"}, {"a": b"a"}, {"b": b"b" * 100_000})


@pytest.fixture
def squeezed() -> images.Made:
    return images.make({"a": b"a"}, {"b": b"b" * 100_000}, compression="gzip")


def test_docker_loads_a_docker_archive(
    made: images.Made, path: Path, docker: daemons.Docker
) -> None:
    written(DockerArchiveTarget, (made, "debian:12"), (made, "r.example.org:5/x:1"), path=path)
    docker("load", "-i", path)
    assert docker.lines("images", "--format", "{{.Repository}}:{{.Tag}}") == [
        "debian:12",
        "r.example.org:5/x:1",
    ]
    (found,) = docker.inspect("debian:12")
    assert found["RootFS"]["Layers"] == images.made_diff_ids(made)
    assert found["Id"] == made.blobs[0][0].digest


def test_docker_loads_an_image_without_name(
    made: images.Made, path: Path, docker: daemons.Docker
) -> None:
    written(DockerArchiveTarget, (made, None), path=path)
    assert made.blobs[0][0].digest in docker("load", "-i", path)


@pytest.mark.parametrize("target_class", TARGETS)
def test_podman_loads_both(
    made: images.Made, path: Path, podman: peers.Podman, target_class: type[OciArchiveTarget]
) -> None:
    podman.load(written(target_class, (made, "debian:12"), path=path))
    assert podman.names() == [FULL]
    assert podman.diff_ids(FULL) == images.made_diff_ids(made)


def test_podman_s_oci_archive_comes_back(
    squeezed: images.Made, path: Path, podman: peers.Podman, tmp_path: Path
) -> None:
    podman.load(written(OciArchiveTarget, (squeezed, "debian:12"), path=path))
    podman("save", "--format", "oci-archive", "-o", tmp_path / "back.tar", "debian:12")
    source = opened(tmp_path / "back.tar")
    assert source.images()[0].names == (FULL,)
    assert images.diff_ids(source) == images.made_diff_ids(squeezed)
    source.close()


def test_buildah_pulls_both_and_pushes_back(
    made: images.Made, path: Path, podman: peers.Podman, tmp_path: Path
) -> None:
    written(DockerArchiveTarget, (made, "debian:12"), path=path)
    for transport in ("docker-archive", "oci-archive"):
        pulled = podman.buildah("pull", "--quiet", f"{transport}:{path}").split()[-1]
        back = tmp_path / f"{transport}.tar"
        podman.buildah("push", pulled, f"{transport}:{back}:debian:12")
        source = open_archive(back, tmp_path)
        assert not isinstance(source, Layout) or transport == "oci-archive"
        assert images.diff_ids(source, "debian:12") == images.made_diff_ids(made)  # type: ignore[arg-type]
        source.close()
        podman("rmi", "--all", "--force")


def test_skopeo_reads_both_transports(
    made: images.Made, squeezed: images.Made, path: Path, skopeo: peers.Skopeo, tmp_path: Path
) -> None:
    written(DockerArchiveTarget, (made, "debian:12"), path=path)
    assert skopeo.diff_ids(f"docker-archive:{path}:debian:12") == images.made_diff_ids(made)
    assert skopeo.diff_ids(f"oci-archive:{path}:{FULL}") == images.made_diff_ids(made)
    skopeo.copy(f"docker-archive:{path}:debian:12", f"oci:{tmp_path}/oci:x")
    written(OciArchiveTarget, (squeezed, "debian:12"), path=path)
    back = tmp_path / "back.tar"
    skopeo.copy(f"oci-archive:{path}:{FULL}", f"oci-archive:{back}:{FULL}", "--preserve-digests")
    source = opened(back)
    assert source.resolve(FULL).digest == squeezed.top.digest
    assert images.diff_ids(source) == images.made_diff_ids(squeezed)
    source.close()


def test_umoci_unpacks_an_extracted_archive(
    squeezed: images.Made, path: Path, tmp_path: Path
) -> None:
    support.need("umoci", "tar")
    written(OciArchiveTarget, (squeezed, "tag"), path=path)
    top = tmp_path / "extracted"
    top.mkdir()
    support.run("tar", "-xf", path, "-C", top)
    support.run("umoci", "unpack", "--rootless", "--image", f"{top}:tag", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/a").read_text() == "a"


@pytest.mark.parametrize("target_class", TARGETS)
def test_containerd_imports_both_and_exports(
    made: images.Made,
    path: Path,
    tmp_path: Path,
    containerd: daemons.Containerd,
    target_class: type[OciArchiveTarget],
) -> None:
    written(target_class, (made, "debian:12"), path=path)
    containerd("images", "import", "--no-unpack", path)
    assert containerd("images", "ls", "--quiet").split() == [FULL]
    assert made.top.digest in containerd("images", "ls")
    back = tmp_path / "back.tar"
    containerd("images", "export", back, FULL)
    source = opened(back)
    assert FULL in source.images()[0].names
    assert source.resolve("debian:12").digest == made.top.digest
    assert images.diff_ids(source) == images.made_diff_ids(made)
    source.close()


def test_containerd_imports_and_exports_an_index(
    path: Path, tmp_path: Path, containerd: daemons.Containerd
) -> None:
    made = images.index(images.make({"a": b"1"}), images.make({"a": b"2"}, architecture="arm64"))
    written(OciArchiveTarget, (made, "debian:12"), path=path)
    containerd("images", "import", "--no-unpack", "--all-platforms", path)
    back = tmp_path / "back.tar"
    containerd("images", "export", "--all-platforms", back, FULL)
    source = opened(back)
    assert source.resolve(FULL).digest == made.top.digest
    for part in made.parts:
        with source.open(part.top) as stream:
            assert stream.read() == part.data
    source.close()


def test_gnu_tar_and_bsdtar_list_the_same(made: images.Made, path: Path) -> None:
    support.need("tar", "bsdtar")
    written(OciArchiveTarget, (made, "a:1"), path=path)
    listed = support.run("tar", "-tf", path).stdout
    assert support.run("bsdtar", "-tf", path).stdout == listed
    names = listed.decode().split()
    assert names[0] == "oci-layout"
    assert names[-1] == "index.json"
