"""Images go from any source to any target without a change, and without a store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lamina.errors import (
    BlobNotFound,
    DigestMismatch,
    ImageNotFound,
    InvalidImage,
    PlatformNotFound,
)
from lamina.oci import mediatypes, platform
from lamina.oci.archives import DockerArchiveTarget, OciArchiveTarget, PlainTar, open_archive
from lamina.oci.content import Source, Target, read_document
from lamina.oci.copying import copy
from lamina.oci.descriptor import Descriptor, Platform, described
from lamina.oci.layout import LayoutDirectory
from lamina.oci.manifest import Index, Manifest
from tests.oci import images, peers
from tests.oci.archives.tars import archive, docker_members

FULL = "docker.io/library/debian:12"
HERE = str(platform.this_machine().architecture)
ELSEWHERE = "s390x" if HERE != "s390x" else "amd64"


@contextmanager
def target(kind: str, path: Path) -> Iterator[Target]:
    if kind == "directory":
        with closing(LayoutDirectory.create(path)) as layout:
            yield layout
        return
    made = {"oci": OciArchiveTarget, "docker": DockerArchiveTarget}[kind]
    with path.open("wb") as file, closing(made(file)) as found:
        yield found


@contextmanager
def source(path: Path) -> Iterator[Source]:
    found = open_archive(path, path.parent)
    assert not isinstance(found, PlainTar)
    with closing(found):
        yield found


def layout(path: Path, made: images.Made, *names: str) -> Path:
    with target("directory", path) as found:
        images.put(found, made, *names)
    return path


def blob(top: Path, descriptor: Descriptor) -> Path:
    return top / "blobs" / Path(*descriptor.digest.split(":"))


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("second", ["directory", "oci", "docker"])
@pytest.mark.parametrize("first", ["directory", "oci", "docker"])
def test_an_image_is_the_same_wherever_it_went(
    tmp_path: Path, first: str, second: str, jobs: int
) -> None:
    made = images.make({"a": b"a"}, {"b": b"b"}, {"a": b"a"})
    with target(first, tmp_path / "1") as there:
        images.put(there, made, "debian:12")
    with source(tmp_path / "1") as one, target(second, tmp_path / "2") as two:
        found = copy(one, two, "debian:12", "other:1", jobs=jobs)
    assert found.digest == made.top.digest
    with source(tmp_path / "2") as there_again:
        (image,) = there_again.images()
        assert image.names == ("docker.io/library/other:1",)
        assert read_document(there_again, image.descriptor) == made.data
        assert images.diff_ids(there_again) == images.made_diff_ids(made)


def test_from_what_docker_saved_to_a_layout_that_others_read(
    tmp_path: Path, skopeo: peers.Skopeo
) -> None:
    made = images.make({"a": b"a"}, {"b": b"b"})
    (tmp_path / "saved.tar").write_bytes(archive(docker_members(made, "debian:12")))
    with source(tmp_path / "saved.tar") as one, target("directory", tmp_path / "oci") as two:
        copy(one, two, None, "debian:12")
    assert skopeo.diff_ids(f"oci:{tmp_path}/oci:{FULL}") == images.made_diff_ids(made)


def indexed(path: Path) -> images.Made:
    """An index of two platforms with an attestation, in a layout."""
    mine = images.make({"a": b"mine"}, architecture=HERE, compression="gzip")
    theirs = images.make({"a": b"theirs"}, architecture=ELSEWHERE, compression="gzip")
    beside = images.make({"statement": b"{}"}, architecture="unknown", label="attestation")
    made = images.index(theirs, mine, beside, architectures=[ELSEWHERE, HERE, "unknown"])
    index = Index.decode(made.data)
    index.manifests[2].annotations = {platform.REFERENCE_TYPE: "attestation-manifest"}
    made.data = index.encode()
    made.top = described(made.data, mediatypes.OCI_INDEX)
    layout(path, made, "debian:12")
    return made


def test_of_an_index_this_machine_s_image_is_copied(tmp_path: Path) -> None:
    made = indexed(tmp_path / "1")
    with source(tmp_path / "1") as one, target("oci", tmp_path / "2") as two:
        found = copy(one, two, "debian:12", "debian:12")
    assert found.digest == made.parts[1].top.digest
    with source(tmp_path / "2") as there:
        assert images.diff_ids(there, "debian:12") == images.made_diff_ids(made.parts[1])
        with pytest.raises(BlobNotFound):
            there.open(made.parts[0].top)


def test_of_an_index_the_image_asked_for_is_copied(tmp_path: Path) -> None:
    made = indexed(tmp_path / "1")
    wanted = platform.parse(ELSEWHERE)
    with source(tmp_path / "1") as one, target("oci", tmp_path / "2") as two:
        assert copy(one, two, None, "a:1", wanted=wanted).digest == made.parts[0].top.digest
        with pytest.raises(PlatformNotFound, match=f"linux/{ELSEWHERE}, linux/{HERE}"):
            copy(one, two, None, "a:1", wanted=platform.parse("linux/riscv64"))


@pytest.mark.parametrize("second", ["directory", "oci"])
def test_an_index_is_copied_as_it_is(tmp_path: Path, second: str) -> None:
    made = indexed(tmp_path / "1")
    with source(tmp_path / "1") as one, target(second, tmp_path / "2") as two:
        assert copy(one, two, None, "a:1", every_platform=True).digest == made.top.digest
    with source(tmp_path / "2") as there:
        (image,) = there.images()
        assert read_document(there, image.descriptor) == made.data
        for part in made.parts:
            assert read_document(there, part.top) == part.data
            for descriptor, data in part.blobs:
                assert read_document(there, descriptor) == data


def test_the_only_image_of_an_index_is_taken_if_its_configuration_fits(tmp_path: Path) -> None:
    for architecture in (HERE, ELSEWHERE):
        part = images.make(architecture=architecture)
        data = Index(manifests=[part.top]).encode()
        made = images.Made(described(data, mediatypes.OCI_INDEX), data, parts=[part])
        layout(tmp_path / "1", made, f"{architecture}:1")
    with source(tmp_path / "1") as one, target("oci", tmp_path / "2") as two:
        copy(one, two, f"{HERE}:1", "a:1")
        with pytest.raises(PlatformNotFound, match=f"there are: linux/{ELSEWHERE}"):
            copy(one, two, f"{ELSEWHERE}:1", "a:1")


def test_an_image_in_no_index_has_to_be_for_the_platform_asked_for(tmp_path: Path) -> None:
    layout(tmp_path / "1", images.make(architecture=ELSEWHERE), "a:1")
    with source(tmp_path / "1") as one, target("oci", tmp_path / "2") as two:
        with pytest.raises(PlatformNotFound):
            copy(one, two, "a:1", "a:1", wanted=platform.this_machine())
        copy(one, two, "a:1", "a:1")


def test_a_configuration_may_be_larger_than_a_manifest(tmp_path: Path) -> None:
    layout(tmp_path / "1", images.make(architecture=HERE, label="x" * (5 << 20)), "a:1")
    with source(tmp_path / "1") as one, target("oci", tmp_path / "2") as two:
        copy(one, two, "a:1", "a:1", wanted=platform.this_machine())


def test_indexes_in_indexes(tmp_path: Path) -> None:
    inner = images.index(images.make(architecture=HERE), architectures=[HERE])
    data = Index(manifests=[inner.top]).encode()
    outer = images.Made(described(data, mediatypes.OCI_INDEX), data, parts=[inner])
    layout(tmp_path / "1", outer, "a:1")
    with source(tmp_path / "1") as one, target("directory", tmp_path / "2") as two:
        assert copy(one, two, None, "one:1").digest == inner.parts[0].top.digest
        assert copy(one, two, None, "all:1", every_platform=True).digest == outer.top.digest
    with source(tmp_path / "2") as there:
        assert [image.descriptor.digest for image in there.images()] == [
            inner.parts[0].top.digest,
            outer.top.digest,
        ]


def test_indexes_too_deep_are_refused(tmp_path: Path) -> None:
    made = images.index(images.make(), architectures=[ELSEWHERE])
    for _ in range(platform.MAX_DEPTH + 2):
        data = Index(manifests=[made.top]).encode()
        made = images.Made(described(data, mediatypes.OCI_INDEX), data, parts=[made])
    layout(tmp_path / "1", made, "a:1")
    with source(tmp_path / "1") as one, target("oci", tmp_path / "2") as two:
        for everything in (True, False):
            with pytest.raises(InvalidImage, match="too deep"):
                copy(one, two, None, "a:1", every_platform=everything)


def test_what_the_target_has_is_not_read(tmp_path: Path) -> None:
    made = images.make({"a": b"a"}, {"b": b"b"})
    layout(tmp_path / "1", made, "a:1")
    layout(tmp_path / "2", made, "other:1")
    for descriptor, _ in made.blobs:
        blob(tmp_path / "1", descriptor).unlink()
    seen: list[str] = []
    with source(tmp_path / "1") as one, target("directory", tmp_path / "2") as two:
        copy(one, two, "a:1", "a:1", report=lambda done: seen.append(done.digest))
    assert seen == [descriptor.digest for descriptor, _ in made.blobs]


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_damaged_blob_gives_no_image(tmp_path: Path, jobs: int) -> None:
    made = images.make(*({str(n): b"x" * n} for n in range(8)))
    layout(tmp_path / "1", made, "a:1")
    damaged = blob(tmp_path / "1", made.blobs[3][0])
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with source(tmp_path / "1") as one, target("directory", tmp_path / "2") as two:
        with pytest.raises(DigestMismatch, match=made.blobs[3][0].digest):
            copy(one, two, "a:1", "a:1", jobs=jobs)
        assert not two.has(made.blobs[3][0])
        assert not two.has(made.top)
    with source(tmp_path / "2") as there:
        assert there.images() == []


def test_a_damaged_manifest_is_found_out(tmp_path: Path) -> None:
    made = images.make()
    layout(tmp_path / "1", made, "a:1")
    blob(tmp_path / "1", made.top).write_bytes(made.data.replace(b"sha256", b"sha25!"))
    with source(tmp_path / "1") as one, target("directory", tmp_path / "2") as two:
        with pytest.raises(DigestMismatch):
            copy(one, two, "a:1", "a:1")
        with pytest.raises(ImageNotFound):
            copy(one, two, "b:1", "b:1")


def test_layers_that_may_not_be_passed_on_stay_where_they_are(tmp_path: Path) -> None:
    """Windows's base layers: the manifest says where they are."""
    made = images.make({"a": b"a"})
    foreign = described(b"elsewhere", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    foreign.urls = ["https://example.org/layer"]
    manifest = Manifest.decode(made.data)
    manifest.layers.insert(0, foreign)
    made.data = manifest.encode()
    made.top = described(made.data, mediatypes.OCI_MANIFEST)
    layout(tmp_path / "1", made, "a:1")
    with source(tmp_path / "1") as one, target("directory", tmp_path / "2") as two:
        copy(one, two, "a:1", "a:1")
        assert not two.has(foreign)
        assert two.has(made.blobs[1][0])


def test_an_artifact_is_copied_too(tmp_path: Path) -> None:
    config = described(b"{}", mediatypes.OCI_EMPTY)
    payload = described(b"payload", "text/plain")
    data = Manifest(config=config, layers=[payload], artifact_type="text/plain").encode()
    top = described(data, mediatypes.OCI_MANIFEST)
    made = images.Made(top, data, [(config, b"{}"), (payload, b"payload")])
    layout(tmp_path / "1", made, "a:1")
    with source(tmp_path / "1") as one, target("oci", tmp_path / "2") as two:
        copy(one, two, "a:1", "a:1", wanted=platform.this_machine())
    with source(tmp_path / "2") as there:
        assert read_document(there, payload) == b"payload"
    document = json.loads((tmp_path / "1/index.json").read_text())
    assert document["manifests"][0]["digest"] == top.digest


def test_a_platform_of_a_layout_s_own_entry_does_not_get_lost(tmp_path: Path) -> None:
    made = images.make()
    made.top.platform = Platform(os="linux", architecture="amd64")
    layout(tmp_path / "1", made, "a:1")
    with source(tmp_path / "1") as one, target("directory", tmp_path / "2") as two:
        copy(one, two, "a:1", "b:1")
    (entry,) = json.loads((tmp_path / "2/index.json").read_text())["manifests"]
    assert entry["platform"] == {"os": "linux", "architecture": "amd64"}
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "docker.io/library/b:1"
