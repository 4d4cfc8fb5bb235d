"""What docker save writes: of Docker, of others, and of nobody who means well."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest

from lamina.errors import (
    AmbiguousName,
    BlobNotFound,
    DigestMismatch,
    ImageNotFound,
    InvalidImage,
    LaminaError,
)
from lamina.oci import mediatypes, sha256
from lamina.oci.archives import DockerArchive, DockerArchiveTarget, open_archive
from lamina.oci.archives.docker import SavedLayout
from lamina.oci.content import Source, read_document
from lamina.oci.descriptor import described
from lamina.oci.manifest import Manifest
from tests import daemons
from tests.oci import images, peers
from tests.oci.archives.tars import CONFIG, Member, archive, docker_members, oci_members

FULL = "docker.io/library/debian:12"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "saved.tar"


def opened(path: Path, members: list[Member]) -> DockerArchive:
    path.write_bytes(archive(members))
    found = open_archive(path, path.parent)
    assert isinstance(found, DockerArchive)
    return found


def test_layers_are_named_by_their_diff_ids(path: Path) -> None:
    made = images.make({"a": b"a"}, {"b": b"b"})
    source = opened(path, docker_members(made, "debian:12", "other/name:1"))
    (image,) = source.images()
    assert image.names == (FULL, "docker.io/other/name:1")
    manifest = Manifest.decode(read_document(source, image.descriptor))
    assert [str(layer.digest) for layer in manifest.layers] == images.made_diff_ids(made)
    assert {layer.media_type for layer in manifest.layers} == {mediatypes.OCI_LAYER}
    assert images.diff_ids(source) == images.made_diff_ids(made)
    with source.open(manifest.layers[0], 10) as stream:
        assert stream.read() == made.blobs[1][1][10:]
    for name in ("debian:12", FULL, "other/name:1", image.descriptor.digest, None):
        assert source.resolve(name).digest == image.descriptor.digest
    with pytest.raises(ImageNotFound, match="debian:12"):
        source.resolve("debian:13")
    source.close()


def test_describing_an_image_reads_no_layer(path: Path) -> None:
    """A layer of zeros, 64 GiB in the archive, has never been hashed."""
    made = images.make({"a": b"a"})
    info = tarfile.TarInfo("big/layer.tar")
    info.size = 64 << 30
    rest = [m for m in docker_members(made, "a:1", Layers=["big/layer.tar"]) if "/" not in m.name]
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(info.size, io.SEEK_CUR)
        file.write(archive(rest))
    source = open_archive(path, path.parent)
    assert isinstance(source, DockerArchive)
    manifest = Manifest.decode(read_document(source, source.resolve("a:1")))
    assert [layer.size for layer in manifest.layers] == [64 << 30]
    source.close()


def test_a_configuration_may_be_larger_than_a_manifest(path: Path) -> None:
    made = images.make({"a": b"a"}, label="x" * (5 << 20))
    source = opened(path, docker_members(made, "a:1"))
    assert images.diff_ids(source) == images.made_diff_ids(made)
    source.close()


def test_images_that_share_a_layer_by_a_link(path: Path) -> None:
    one = images.make({"a": b"a"})
    two = images.make({"a": b"a"}, {"b": b"b"})
    items = [
        {"Config": "1.json", "RepoTags": ["one:1"], "Layers": ["x/layer.tar"]},
        {"Config": "2.json", "RepoTags": ["two:1"], "Layers": ["y/layer.tar", "z/layer.tar"]},
    ]
    source = opened(
        path,
        [
            Member("1.json", one.blobs[0][1]),
            Member("2.json", two.blobs[0][1]),
            Member("x/layer.tar", one.blobs[1][1]),
            Member("y/layer.tar", type=tarfile.SYMTYPE, link="../x/layer.tar"),
            Member("z/layer.tar", two.blobs[2][1]),
            Member("manifest.json", json.dumps(items).encode()),
        ],
    )
    assert images.diff_ids(source, "one:1") == images.made_diff_ids(one)
    assert images.diff_ids(source, "two:1") == images.made_diff_ids(two)
    with pytest.raises(AmbiguousName, match=r"one:1.*two:1"):
        source.resolve(None)
    source.close()


def test_one_image_listed_twice_is_one(path: Path) -> None:
    members = docker_members(images.make(), "a:1")
    (item,) = json.loads(members[-1].data)
    items = [item, item | {"RepoTags": ["b:1"]}]
    source = opened(path, [*members[:-1], Member("manifest.json", json.dumps(items).encode())])
    (image,) = source.images()
    assert image.names == ("docker.io/library/a:1", "docker.io/library/b:1")
    assert source.resolve("b:1") == source.resolve("a:1") == source.resolve(None)
    source.close()


def test_an_image_without_name_or_layers(path: Path) -> None:
    config = b'{"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers"}}'
    item = [{"Config": "c", "RepoTags": None, "Layers": None}]
    source = opened(path, [Member("c", config), Member("manifest.json", json.dumps(item).encode())])
    assert source.images()[0].names == ()
    assert images.diff_ids(source) == []
    source.close()


def test_compressed_layers_are_named_by_what_they_are(path: Path) -> None:
    made = images.make({"a": b"a"})
    data = gzip.compress(made.blobs[1][1])
    members = [
        m._replace(data=data) if m.name == "0/layer.tar" else m for m in docker_members(made)
    ]
    source = opened(path, members)
    (layer,) = Manifest.decode(read_document(source, source.resolve(None))).layers
    assert (layer.digest, layer.media_type) == (sha256(data), mediatypes.layer_type("gzip"))
    assert images.diff_ids(source) == images.made_diff_ids(made)
    source.close()


def changed(made: images.Made, name: str, data: bytes | None) -> list[Member]:
    """An archive one of whose members is another, or missing."""
    members = docker_members(made, "a:1")
    if data is None:
        return [member for member in members if member.name != name]
    return [m._replace(data=data) if m.name == name else m for m in members]


MADE = images.make({"a": b"a"})
NO_DIGEST = json.dumps({"rootfs": {"type": "layers", "diff_ids": ["sha256:../../x"]}}).encode()


@pytest.mark.parametrize(
    ("members", "error", "why"),
    [
        (
            changed(MADE, "manifest.json", b"{}"),
            InvalidImage,
            "manifest.json of .*Expected `array`",
        ),
        (changed(MADE, "manifest.json", b"[" * 9999), InvalidImage, "manifest.json of"),
        (changed(MADE, "manifest.json", b" " * (5 << 20)), InvalidImage, "at most"),
        (changed(MADE, "manifest.json", b'[{"Layers": []}]'), InvalidImage, "Config"),
        (changed(MADE, CONFIG, None), BlobNotFound, CONFIG),
        (changed(MADE, CONFIG, b"[]"), InvalidImage, "not an image configuration"),
        (changed(MADE, CONFIG, NO_DIGEST), InvalidImage, "not a sha256"),
        (changed(MADE, CONFIG, b" " * (9 << 20)), InvalidImage, "at most"),
        (changed(MADE, "0/layer.tar", None), BlobNotFound, "sha256:.*0/layer.tar in"),
        (changed(MADE, "0/layer.tar", b"other"), DigestMismatch, "expected digest"),
        (changed(MADE, "0/layer.tar", lzma.compress(b"x")), InvalidImage, "compressed by xz"),
        (docker_members(MADE, Layers=[]), InvalidImage, "0 layers for .*1 DiffIDs"),
        (docker_members(MADE, Layers=["0/layer.tar"] * 2), InvalidImage, "2 layers"),
        (docker_members(MADE, Layers=["../../etc/passwd"]), InvalidImage, "passwd"),
        (docker_members(MADE, Layers=["/etc/passwd"]), InvalidImage, "out of itself: '/etc/passwd"),
        (docker_members(MADE, Config="../c"), InvalidImage, "out of itself: '../c'"),
        (docker_members(MADE, Config="0"), InvalidImage, "no regular file"),
        (docker_members(MADE, "A:b"), InvalidImage, "manifest.json of .*lower case"),
        (docker_members(MADE, "a@sha256:0"), InvalidImage, "manifest.json of"),
        (
            [
                *changed(MADE, CONFIG, None),
                Member(CONFIG, type=tarfile.SYMTYPE, link="/etc/passwd"),
            ],
            InvalidImage,
            "a link out of the archive",
        ),
    ],
)
def test_what_is_wrong_is_said(
    path: Path, members: list[Member], error: type[LaminaError], why: str
) -> None:
    with pytest.raises(error, match=why):
        source = opened(path, members)
        try:
            images.diff_ids(source)
        finally:
            source.close()


def test_an_archive_of_docker_before_1_10_is_said_to_be_one(path: Path) -> None:
    path.write_bytes(archive([Member("x/layer.tar"), Member("repositories", b"{}")]))
    with pytest.raises(InvalidImage, match=r"before 1\.10"):
        open_archive(path, path.parent)


# --- both forms in one


def saved(path: Path, members: list[Member]) -> SavedLayout:
    path.write_bytes(archive(members))
    found = open_archive(path, path.parent)
    assert isinstance(found, SavedLayout)
    return found


def test_the_index_counts_and_the_names_of_both(path: Path) -> None:
    made = images.make({"a": b"a"}, compression="gzip")
    config = made.blobs[0][0].digest.removeprefix("sha256:")
    item = {"Config": f"blobs/sha256/{config}", "RepoTags": ["more:1"], "Layers": ["nowhere"]}
    members = oci_members(made, **{"io.containerd.image.name": FULL})
    source = saved(path, [*members, Member("manifest.json", json.dumps([item]).encode())])
    (image,) = source.images()
    assert image.names == (FULL, "docker.io/library/more:1")
    assert source.resolve("more:1").digest == made.top.digest
    assert images.diff_ids(source, "more:1") == images.made_diff_ids(made)
    source.close()


def test_manifests_that_docker_names_but_does_not_have(path: Path) -> None:
    """Docker 28 with containerd saves an index of all platforms, and the blobs of one."""
    made = images.make()
    members = oci_members(made)
    document = json.loads(members[1].data)
    absent = json.loads(images.make(label="absent").top.encode())
    document["manifests"].append(absent)
    members[1] = members[1]._replace(data=json.dumps(document).encode())
    item = {"Config": "x", "RepoTags": ["a:1"], "Layers": []}
    source = saved(path, [*members, Member("manifest.json", json.dumps([item]).encode())])
    assert [image.names for image in source.images()] == [(), ()]
    with pytest.raises(BlobNotFound):
        images.diff_ids(source, absent["digest"])
    source.close()


# --- with Docker and others


def test_what_docker_saves_is_read(path: Path, docker: daemons.Docker, tmp_path: Path) -> None:
    one = images.make({"a": b"a"})
    two = images.make({"a": b"a"}, {"b": b"b"})
    with path.open("wb") as file:
        target = DockerArchiveTarget(file)
        images.put(target, one, "one:1")
        images.put(target, two, "two:1", "reg.example.org:5000/two:2")
        target.close()
    docker("load", "-i", path)
    back = tmp_path / "back.tar"
    docker("save", "-o", back, "one:1", "two:1", "reg.example.org:5000/two:2")
    with tarfile.open(back) as archive:
        assert any(member.issym() for member in archive)  # the layer that both have
    source = open_archive(back, tmp_path)
    assert isinstance(source, DockerArchive)
    assert {image.names for image in source.images()} == {
        ("docker.io/library/one:1",),
        ("docker.io/library/two:1", "reg.example.org:5000/two:2"),
    }
    assert images.diff_ids(source, "one:1") == images.made_diff_ids(one)
    assert images.diff_ids(source, "two:1") == images.made_diff_ids(two)
    source.close()
    docker("save", "-o", back, docker.inspect("one:1")[0]["Id"])
    source = open_archive(back, tmp_path)
    assert isinstance(source, DockerArchive)
    assert [image.names for image in source.images()] == [()]
    source.close()


def test_what_skopeo_and_podman_write_is_read(
    path: Path, tmp_path: Path, skopeo: peers.Skopeo, podman: peers.Podman
) -> None:
    made = images.make({"a": b"a"}, {"a": b"a"}, {"b": b"b"}, compression="gzip")
    (tmp_path / "oci.tar").write_bytes(
        archive(oci_members(made, **{"org.opencontainers.image.ref.name": FULL}))
    )
    skopeo.copy(f"oci-archive:{tmp_path}/oci.tar", f"docker-archive:{path}:debian:12")
    podman.load(path)
    podman_path = tmp_path / "podman.tar"
    podman("save", "-o", podman_path, "debian:12")
    for written in (path, podman_path):
        source: Source
        found = open_archive(written, tmp_path)
        assert isinstance(found, DockerArchive)
        source = found
        assert source.images()[0].names == (FULL,)
        assert images.diff_ids(source, "debian:12") == images.made_diff_ids(made)
        source.close()


def test_a_blob_that_no_image_has_is_missing(path: Path) -> None:
    source = opened(path, docker_members(MADE))
    with pytest.raises(BlobNotFound):
        source.open(described(b"", "x"))
    source.close()
