"""Image layouts in directories: what we write, others read, and the other way round."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lamina.errors import (
    AmbiguousName,
    BlobNotFound,
    DigestMismatch,
    ImageNotFound,
    InvalidImage,
    InvalidName,
)
from lamina.oci import mediatypes
from lamina.oci.content import read_document, verified
from lamina.oci.descriptor import Descriptor, described
from lamina.oci.layout import LayoutDirectory
from lamina.oci.manifest import Index
from lamina.types import Digest
from tests import support
from tests.oci import images, peers

FULL = "docker.io/library/debian:12"


def blob(top: Path, descriptor: Descriptor) -> Path:
    return top / "blobs" / Path(*descriptor.digest.split(":"))


def index_of(top: Path) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = json.loads((top / "index.json").read_text())["manifests"]
    return entries


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "layout"


@pytest.fixture
def made(top: Path) -> images.Made:
    """An image called debian:12 in a layout at ``top``."""
    made = images.make({"a": b"a"}, {"b": b"b" * 1000}, compression="gzip")
    layout = LayoutDirectory.create(top)
    images.put(layout, made, "debian:12")
    layout.close()
    return made


# --- by itself


def test_what_was_written_is_read(top: Path, made: images.Made) -> None:
    layout = LayoutDirectory(top)
    (image,) = layout.images()
    assert image.names == (FULL,)
    assert image.descriptor.digest == made.top.digest
    for name in ("debian:12", FULL, "index.docker.io/library/debian:12", made.top.digest, None):
        assert layout.resolve(name).digest == made.top.digest
    assert layout.resolve(f"debian@{made.top.digest}").digest == made.top.digest
    assert images.diff_ids(layout) == images.made_diff_ids(made)
    layer = made.blobs[1][0]
    with layout.open(layer, 5) as stream:
        assert stream.read() == made.blobs[1][1][5:]
    layout.close()


def test_only_what_is_said_is_there(top: Path, made: images.Made) -> None:
    names = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
    blobs = [made.top, *(descriptor for descriptor, _ in made.blobs)]
    expected = {str(blob(top, descriptor).relative_to(top)) for descriptor in blobs}
    assert names == expected | {"oci-layout", "index.json"}
    assert json.loads((top / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_a_name_goes_from_one_image_to_another(top: Path, made: images.Made) -> None:
    other = images.make(label="other")
    layout = LayoutDirectory.create(top)
    images.put(layout, other, FULL, "other")
    assert layout.resolve("debian:12").digest == other.top.digest
    assert [image.names for image in layout.images()] == [(FULL,)]
    layout.close()
    assert len(index_of(top)) == 2  # "other" is a tag, and no image's name


def test_a_name_that_skopeo_wrote_short_is_replaced_too(top: Path, made: images.Made) -> None:
    document = json.loads((top / "index.json").read_text())
    document["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "debian:12"}
    (top / "index.json").write_text(json.dumps(document))
    other = images.make(label="other")
    layout = LayoutDirectory.create(top)
    images.put(layout, other, "debian:12")
    assert layout.resolve("debian:12").digest == other.top.digest
    layout.close()
    assert len(index_of(top)) == 1


def test_a_bare_tag_is_found_by_itself_alone(top: Path) -> None:
    layout = LayoutDirectory.create(top)
    images.put(layout, images.make(), "12")
    assert layout.resolve("12") == layout.resolve(None)
    assert [image.names for image in layout.images()] == [()]
    with pytest.raises(ImageNotFound, match="has 12"):
        layout.resolve("debian:12")
    layout.close()


def test_of_several_images_one_has_to_be_named(top: Path, made: images.Made) -> None:
    layout = LayoutDirectory.create(top)
    images.put(layout, images.make(label="b"), "b:1")
    with pytest.raises(AmbiguousName, match=r"library/debian:12, docker.io/library/b:1"):
        layout.resolve(None)
    layout.close()


def test_what_has_no_name_is_entered_at_the_end(top: Path) -> None:
    made = images.make()
    for _ in range(2):
        layout = LayoutDirectory.create(top)
        images.put(layout, made)
        layout.close()
    assert [entry["digest"] for entry in index_of(top)] == [made.top.digest]
    assert "annotations" not in index_of(top)[0]


def test_what_an_index_names_is_not_entered_by_itself(top: Path) -> None:
    made = images.index(images.make(), images.make(architecture="arm64"))
    layout = LayoutDirectory.create(top)
    images.put(layout, made, "debian:12")
    layout.close()
    assert [entry["digest"] for entry in index_of(top)] == [made.top.digest]


def test_attestations_are_no_images(top: Path) -> None:
    index = Index(manifests=[described(b"{}", mediatypes.OCI_MANIFEST)])
    index.manifests[0].annotations = {"vnd.docker.reference.type": "attestation-manifest"}
    LayoutDirectory.create(top).close()
    (top / "index.json").write_bytes(index.encode())
    layout = LayoutDirectory(top)
    assert layout.images() == []
    with pytest.raises(ImageNotFound):
        layout.resolve(None)
    layout.close()


def test_a_bad_name_is_refused_and_nothing_entered(top: Path, made: images.Made) -> None:
    layout = LayoutDirectory.create(top)
    with pytest.raises(InvalidName):
        layout.put_manifest(made.top, made.data, "A:b")
    layout.close()
    assert len(index_of(top)) == 1


def test_sha512_blobs_lie_in_their_own_directory(top: Path) -> None:
    import hashlib

    digest = Digest("sha512:" + hashlib.sha512(b"data").hexdigest())
    descriptor = Descriptor(media_type="text/plain", digest=digest, size=4)
    layout = LayoutDirectory.create(top)
    layout.put(descriptor, io.BytesIO(b"data"))
    assert layout.has(descriptor)
    assert read_document(layout, descriptor) == b"data"
    layout.close()


# --- writers among each other


def test_writers_at_once_lose_no_image(top: Path) -> None:
    script = """
import sys
from lamina.oci.layout import LayoutDirectory
from tests.oci import images
top, me = sys.argv[1:]
for number in range(10):
    layout = LayoutDirectory.create(top)
    images.put(layout, images.make({"same": b"same"}, label=f"{me}-{number}"), f"a:{me}-{number}")
    layout.close()
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", script, top, str(n)], cwd=Path.cwd())
        for n in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    layout = LayoutDirectory(top)
    assert len(layout.images()) == 40
    assert all(images.diff_ids(layout, f"a:{n}-{m}") for n in range(4) for m in range(10))
    layout.close()
    assert not [path for path in top.rglob("*") if path.name.startswith(".")]


def test_threads_share_one_layout(top: Path) -> None:
    layout = LayoutDirectory.create(top)
    threads = [
        threading.Thread(
            target=images.put, args=(layout, images.make(label=str(number)), f"a:{number}")
        )
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(layout.images()) == 16
    layout.close()


def test_a_writer_s_failure_leaves_nothing(top: Path) -> None:
    layout = LayoutDirectory.create(top)
    descriptor = described(b"right", "text/plain")
    with pytest.raises(DigestMismatch):
        layout.put(descriptor, verified(io.BytesIO(b"wrong"), descriptor))
    assert not layout.has(descriptor)
    assert list((top / "blobs/sha256").iterdir()) == []
    layout.close()


def test_a_killed_writer_s_file_goes_with_the_next(top: Path) -> None:
    script = """
import os, signal, sys
from lamina.oci.descriptor import described
from lamina.oci.layout import LayoutDirectory
class Stream:
    def read(self, size):
        os.kill(os.getpid(), signal.SIGKILL)
LayoutDirectory.create(sys.argv[1]).put(described(b"x", "x"), Stream())
"""
    subprocess.run([sys.executable, "-c", script, top], check=False)
    assert len(list((top / "blobs/sha256").iterdir())) == 1
    LayoutDirectory.create(top).close()
    assert list((top / "blobs/sha256").iterdir()) == []


def test_a_full_disk_leaves_the_layout_as_it_was(tmpfs_small: Path) -> None:
    layout = LayoutDirectory.create(tmpfs_small / "layout")
    data = os.urandom(8 << 20)
    with pytest.raises(OSError, match="No space left"):
        layout.put(described(data, "x"), io.BytesIO(data))
    made = images.make()
    images.put(layout, made, "a:1")
    assert images.diff_ids(layout) == images.made_diff_ids(made)
    layout.close()


# --- damaged and hostile layouts


def test_a_missing_blob_is_named(top: Path, made: images.Made) -> None:
    blob(top, made.blobs[2][0]).unlink()
    layout = LayoutDirectory(top)
    with pytest.raises(BlobNotFound, match=made.blobs[2][0].digest):
        images.diff_ids(layout)
    layout.close()


@pytest.mark.parametrize("data", [b"", b"x" * 100_000])
def test_a_blob_of_another_size_is_not_even_read(top: Path, made: images.Made, data: bytes) -> None:
    descriptor = made.blobs[1][0]
    blob(top, descriptor).write_bytes(data)
    layout = LayoutDirectory.create(top)
    with pytest.raises(InvalidImage, match=f"{descriptor.digest}.*has {len(data)} bytes"):
        layout.open(descriptor)
    assert not layout.has(descriptor)
    images.put(layout, made, "debian:12")  # which mends it
    assert images.diff_ids(layout) == images.made_diff_ids(made)
    layout.close()


def test_links_lead_nowhere_outside(top: Path, made: images.Made, tmp_path: Path) -> None:
    descriptor, data = made.blobs[1]
    path = blob(top, descriptor)
    outside = tmp_path / "outside"
    outside.write_bytes(data)
    layout = LayoutDirectory(top)
    for target in (str(outside), "../../../outside"):
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(BlobNotFound):
            layout.open(descriptor)
    path.unlink()
    (top / "kept").write_bytes(data)
    path.symlink_to("../../kept")  # as in layouts that share blobs
    assert read_document(layout, descriptor) == data
    layout.close()


def test_directories_that_are_links_lead_nowhere_outside(top: Path, tmp_path: Path) -> None:
    LayoutDirectory.create(top).close()
    (top / "blobs/sha256").rmdir()
    (tmp_path / "outside").mkdir()
    (top / "blobs/sha256").symlink_to(tmp_path / "outside")
    layout = LayoutDirectory(top)
    with pytest.raises(OSError, match="sha256"):
        layout.put(described(b"data", "x"), io.BytesIO(b"data"))
    assert list((tmp_path / "outside").iterdir()) == []
    layout.close()


def test_what_is_no_file_is_refused_without_waiting(top: Path, made: images.Made) -> None:
    descriptor = made.blobs[1][0]
    path = blob(top, descriptor)
    layout = LayoutDirectory(top)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidImage, match="no regular file"):
        layout.open(descriptor)
    path.unlink()
    path.mkdir()
    with pytest.raises(InvalidImage, match="no regular file"):
        layout.open(descriptor)
    path.rmdir()
    path.symlink_to(path.name)
    with pytest.raises(InvalidImage, match="no file"):
        layout.open(descriptor)
    layout.close()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("oci-layout", None, "has no file oci-layout"),
        ("oci-layout", b"{}", "imageLayoutVersion"),
        ("oci-layout", b"\xff", "oci-layout"),
        ("oci-layout", b'{"imageLayoutVersion": "2.0.0"}', "version 2.0.0, not 1"),
        ("oci-layout", b" " * (1 << 20), "at most"),
        ("index.json", None, "missing"),
        ("index.json", b"[]", "index.json of .*not an image manifest"),
        ("index.json", b'{"schemaVersion": 2}', "manifests"),
        ("index.json", b'{"schemaVersion": 2, "manifests": [{}]}', "mediaType"),
        ("index.json", b'{"schemaVersion": 2, "manifests": [], "config": {}}', "has config"),
        ("index.json", b" " * (5 << 20), "at most"),
    ],
)
def test_a_damaged_layout_is_said_to_be(
    top: Path, made: images.Made, name: str, content: bytes | None, why: str
) -> None:
    if content is None:
        (top / name).unlink()
    else:
        (top / name).write_bytes(content)
    with pytest.raises(InvalidImage, match=why):
        layout = LayoutDirectory(top)
        try:
            layout.images()
        finally:
            layout.close()


def test_what_is_not_empty_does_not_become_a_layout(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidImage, match="not empty"):
        LayoutDirectory.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "md5:" + "0" * 32, "x"])
def test_a_digest_is_no_path(top: Path, made: images.Made, digest: str) -> None:
    layout = LayoutDirectory(top)
    with pytest.raises(InvalidImage, match="not a sha256 or sha512 digest"):
        layout.open(Descriptor(media_type="x", digest=Digest(digest), size=1))
    layout.close()


# --- with others


def test_skopeo_reads_and_writes_the_same(
    top: Path, made: images.Made, tmp_path: Path, skopeo: peers.Skopeo
) -> None:
    assert skopeo.diff_ids(f"oci:{top}:{FULL}") == images.made_diff_ids(made)
    there = tmp_path / "there"
    skopeo.copy(f"oci:{top}:{FULL}", f"oci:{there}:debian:12", "--preserve-digests")
    layout = LayoutDirectory.create(there)
    assert layout.resolve(FULL).digest == made.top.digest
    assert images.diff_ids(layout, "debian:12") == images.made_diff_ids(made)
    other = images.make(label="other")
    images.put(layout, other, "tag")
    layout.close()
    assert skopeo.diff_ids(f"oci:{there}:tag") == images.made_diff_ids(other)


def test_umoci_finds_tags_and_full_names_and_adds_its_own(tmp_path: Path, top: Path) -> None:
    support.need("umoci")
    made = images.make({"a": b"a"}, compression="gzip")
    layout = LayoutDirectory.create(top)
    images.put(layout, made, "first", FULL)
    layout.close()
    assert set(support.run("umoci", "ls", "--layout", top).stdout.decode().split()) == {
        "first",
        FULL,
    }
    (tmp_path / "file").write_text("inserted")
    support.run("umoci", "insert", "--image", f"{top}:first", tmp_path / "file", "/file")
    layout = LayoutDirectory(top)
    assert images.diff_ids(layout, "first")[:-1] == images.made_diff_ids(made)
    assert images.diff_ids(layout, FULL) == images.made_diff_ids(made)
    layout.close()
    support.run("umoci", "gc", "--layout", top)
    support.run("umoci", "unpack", "--rootless", "--image", f"{top}:first", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/a").read_text() == "a"
    assert (tmp_path / "bundle/rootfs/file").read_text() == "inserted"


def test_a_layout_that_umoci_made_is_read_and_added_to(tmp_path: Path, top: Path) -> None:
    support.need("umoci")
    support.run("umoci", "init", "--layout", top)
    support.run("umoci", "new", "--image", f"{top}:new")
    (tmp_path / "file").write_text("inserted")
    for number in range(3):
        support.run("umoci", "insert", "--image", f"{top}:new", tmp_path / "file", f"/{number}")
    layout = LayoutDirectory.create(top)
    assert len(images.diff_ids(layout, "new")) == 3
    images.put(layout, images.make(compression="gzip"), "ours")
    layout.close()
    assert support.run("umoci", "ls", "--layout", top).stdout.split() == [b"new", b"ours"]
    support.run("umoci", "unpack", "--rootless", "--image", f"{top}:ours", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/hello").read_text() == "world"


def test_podman_reads_what_we_write_and_we_what_it_writes(
    top: Path, made: images.Made, tmp_path: Path, podman: peers.Podman
) -> None:
    podman.load(top)
    (name,) = podman.names()
    assert podman.diff_ids(name) == images.made_diff_ids(made)
    there = tmp_path / "there"
    podman("save", "--format", "oci-dir", "-o", there, name)
    layout = LayoutDirectory(there)
    assert images.diff_ids(layout) == images.made_diff_ids(made)
    assert layout.images()[0].names == (name,)
    layout.close()
