"""Manifests and blobs go to a registry and come back."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from lamina.errors import BlobNotFound, DigestMismatch, ImageNotFound, InvalidName, RegistryError
from lamina.oci import mediatypes
from lamina.oci.content import read_document, verified
from lamina.oci.descriptor import Descriptor, described
from lamina.oci.manifest import Index, Manifest, decode_manifest
from lamina.oci.registry import Client, Repository
from tests import support
from tests.oci.registry.conftest import DATA, Open, quick
from tests.registries import Registry

BLOB = described(DATA, "application/octet-stream")


def put(repository: Repository, data: bytes, media_type: str = mediatypes.OCI_LAYER) -> Descriptor:
    descriptor = described(data, media_type)
    repository.put(descriptor, stream(data, descriptor))
    return descriptor


def stream(data: bytes, descriptor: Descriptor) -> BinaryIO:
    return verified(io.BytesIO(data), descriptor)


def read(repository: Repository, descriptor: Descriptor, offset: int = 0) -> bytes:
    with repository.open(descriptor, offset) as found:
        parts = []
        while data := found.read(100_000):
            parts.append(data)
        return b"".join(parts)


def put_image(
    repository: Repository, name: str | None, layer: bytes = b"a layer", **members: object
) -> Descriptor:
    """An image of one layer, whose members are those of its manifest."""
    config = put(repository, b'{"architecture":"amd64","os":"linux"}', mediatypes.OCI_CONFIG)
    manifest = Manifest(config=config, layers=[put(repository, layer)])
    for member, value in members.items():
        setattr(manifest, member, value)
    data = manifest.encode()
    descriptor = described(data, mediatypes.OCI_MANIFEST)
    repository.put_manifest(descriptor, data, name)
    return descriptor


def uploads(registry: Registry, repository: Repository) -> list[Path]:
    """The files of uploads that a docker-registry has (it leaves empty states of hashes)."""
    storage = registry.log.parent / "storage/docker/registry/v2/repositories"
    return [*(storage / repository.repository / "_uploads").rglob("data")]


@pytest.fixture
def repository(plain_registry: Registry, repository_name: str, opened: Open) -> Repository:
    return opened(plain_registry.host, repository_name)


@pytest.mark.parametrize("size", [0, 1, 1000, len(DATA)])
@pytest.mark.parametrize("chunk_size", [1 << 20, 1_000_003, 64 << 20])
def test_a_blob_comes_back(
    plain_registry: Registry, repository_name: str, opened: Open, size: int, chunk_size: int
) -> None:
    repository = opened(plain_registry.host, repository_name, chunk_size=chunk_size)
    blob = put(repository, DATA[:size])
    assert repository.has(blob)
    assert read(repository, blob) == DATA[:size]
    assert not repository.has(described(b"another one", mediatypes.OCI_LAYER))


@pytest.mark.parametrize("offset", [0, 1, 2_000_000, len(DATA) - 1, len(DATA)])
def test_a_blob_is_read_from_where_it_is_asked_for(repository: Repository, offset: int) -> None:
    blob = put(repository, DATA)
    assert read(repository, blob, offset) == DATA[offset:]


def test_a_blob_that_is_not_there_is_named(repository: Repository) -> None:
    with pytest.raises(BlobNotFound, match=BLOB.digest):
        repository.open(BLOB)


def test_nothing_is_left_of_a_blob_whose_stream_ends_early(
    plain_registry: Registry, repository_name: str, opened: Open
) -> None:
    repository = opened(plain_registry.host, repository_name, chunk_size=1 << 20)
    with pytest.raises(Exception, match="ends after"):
        repository.put(BLOB, stream(DATA[:-5], BLOB))
    assert not repository.has(BLOB)
    assert uploads(plain_registry, repository) == []


@pytest.mark.parametrize("name", ["12", None])
def test_an_image_comes_back_byte_for_byte(repository: Repository, name: str | None) -> None:
    written = put_image(repository, name)
    found = repository.resolve(name or written.digest)
    assert (found.digest, found.size, found.media_type) == (
        written.digest, written.size, mediatypes.OCI_MANIFEST,
    )  # fmt: skip
    manifest = decode_manifest(read_document(repository, found), found.media_type)
    assert isinstance(manifest, Manifest)
    assert read_document(repository, manifest.layers[0]) == b"a layer"


def test_a_tag_with_its_manifest_is_one_request(
    plain_registry: Registry, repository_name: str, opened: Open
) -> None:
    put_image(opened(plain_registry.host, repository_name), "latest")
    repository = opened(plain_registry.host, repository_name)
    read_document(repository, repository.resolve(None))
    assert repository.requests == 1
    repository.resolve("latest")
    assert repository.requests == 2


def test_a_tag_that_did_not_change_is_not_sent_again(repository: Repository) -> None:
    known = put_image(repository, "one")
    before = repository.requests
    assert repository.resolve("one", known) is known
    assert repository.requests == before + 1
    other = put_image(repository, "one", b"another layer")
    assert repository.resolve("one", known).digest == other.digest


def test_names_may_be_whole(repository: Repository) -> None:
    written = put_image(repository, f"{repository.description}:one")
    for name in ("one", f"{repository.description}:one", written.digest,
                 f"{repository.description}@{written.digest}"):  # fmt: skip
        assert repository.resolve(name).digest == written.digest


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "../x", "other.org/a:b", "sha256:12", "x" * 129]
)
def test_what_is_no_tag_is_not_asked_for(repository: Repository, name: str) -> None:
    with pytest.raises(InvalidName):
        repository.resolve(name)
    assert repository.requests == 0


@pytest.mark.parametrize("name", ["", "A", "a//b", "/a", "a/", "a/../b", "a?b", "a" * 256])
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        Repository("localhost:1", name)


@pytest.mark.parametrize("host", ["", "a/b", "user@host", "host:port", "a b", "-a", "[::1"])
def test_what_is_no_registry_is_refused(host: str) -> None:
    with pytest.raises(InvalidName):
        Repository(host, "a")


def test_a_tag_that_is_not_there_is_named(repository: Repository) -> None:
    with pytest.raises(ImageNotFound, match=f"{repository.description}:none"):
        repository.resolve("none")


def test_a_manifest_is_written_only_as_it_is_described(repository: Repository) -> None:
    wrong = described(b"other bytes", mediatypes.OCI_MANIFEST)
    with pytest.raises(DigestMismatch):
        repository.put_manifest(wrong, b"some bytes", "one")
    assert repository.requests == 0


def test_what_the_registry_says_of_a_manifest_it_refused_is_shown(repository: Repository) -> None:
    blob = described(b"a layer that was not sent", mediatypes.OCI_LAYER)
    data = Manifest(config=blob, layers=[blob]).encode()
    with pytest.raises(RegistryError, match=r"400 Bad Request.*MANIFEST_BLOB_UNKNOWN") as caught:
        repository.put_manifest(described(data, mediatypes.OCI_MANIFEST), data, "one")
    assert caught.value.status == 400
    assert repository.repository in str(caught.value)
    assert repository.registry in str(caught.value)


def test_an_index_is_written_and_read(repository: Repository) -> None:
    parts = [put_image(repository, None, bytes([n])) for n in range(3)]
    data = Index(manifests=parts).encode()
    repository.put_manifest(described(data, mediatypes.OCI_INDEX), data, "all")
    found = repository.resolve("all")
    assert found.media_type == mediatypes.OCI_INDEX
    assert all(repository.has(part) for part in parts)
    assert read_document(repository, parts[1])


def test_a_blob_of_another_repository_is_mounted(
    repository: Repository, plain_registry: Registry, opened: Open
) -> None:
    blob = put(repository, DATA)
    other = opened(plain_registry.host, f"{repository.repository}/other")
    assert other.mount(blob, repository.repository)
    assert read(other, blob) == DATA
    third = opened(
        plain_registry.host,
        f"{repository.repository}/third",
        mount_from=("not/there", repository.repository),
    )
    assert third.has(blob)
    assert read(third, blob) == DATA


def test_what_can_not_be_mounted_is_sent_by_the_upload_that_was_begun(
    repository: Repository, plain_registry: Registry, opened: Open
) -> None:
    other = opened(
        plain_registry.host, f"{repository.repository}/other", mount_from=(repository.repository,)
    )
    assert not other.has(BLOB)
    before = other.requests
    put(other, DATA)
    assert other.requests == before + 1
    assert other.has(BLOB)


def test_an_upload_that_was_begun_for_nothing_is_given_up(
    repository: Repository, plain_registry: Registry, tmp_path: Path
) -> None:
    with_hint = Repository(
        plain_registry.host, repository.repository, options=quick(tmp_path), mount_from=("a/b",)
    )
    assert not with_hint.has(BLOB)
    with_hint.close()
    assert uploads(plain_registry, repository) == []


def test_tags_of_no_repository_are_an_error(repository: Repository) -> None:
    with pytest.raises(ImageNotFound, match=repository.repository):
        repository.tags()


def test_a_registry_does_not_list_images(repository: Repository) -> None:
    with pytest.raises(RegistryError, match="name one"):
        repository.images()


def test_a_deleted_manifest_is_gone(repository: Repository) -> None:
    written = put_image(repository, "one")
    repository.delete_manifest(written.digest)
    with pytest.raises(ImageNotFound):
        repository.resolve("one")
    with pytest.raises(ImageNotFound):
        repository.delete_manifest(written.digest)


def test_referrers_are_found_where_the_registry_has_no_list_of_them(
    repository: Repository,
) -> None:
    """docker-registry 2.8 has none."""
    subject = put_image(repository, "one")
    assert repository.referrers(subject.digest) == []
    signatures = [
        put_image(repository, None, bytes([n]), subject=subject, artifact_type="test/signature")
        for n in range(2)
    ]
    found = repository.referrers(subject.digest)
    assert [each.digest for each in found] == [each.digest for each in signatures]
    assert {each.artifact_type for each in found} == {"test/signature"}


@pytest.mark.parametrize("which", ["plain_registry", "tls_registry"])
def test_threads_share_a_repository(
    which: str, request: pytest.FixtureRequest, repository_name: str, opened: Open
) -> None:
    registry: Registry = request.getfixturevalue(which)
    repository = opened(registry.host, repository_name, insecure=True)
    data = [bytes([n]) * (1 << 20) for n in range(8)]
    found: dict[int, bytes] = {}

    def send_and_fetch(number: int) -> None:
        blob = put(repository, data[number])
        assert all(repository.has(blob) for _ in range(10))
        found[number] = read(repository, blob)

    threads = [threading.Thread(target=send_and_fetch, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict(enumerate(data))


def test_repositories_share_a_client(
    plain_registry: Registry, repository_name: str, tmp_path: Path
) -> None:
    client = Client(plain_registry.host, quick(tmp_path))
    try:
        one = Repository(plain_registry.host, repository_name, client=client)
        blob = put(one, b"x")
        one.close()
        other = Repository(plain_registry.host, f"{repository_name}/b", client=client)
        assert other.mount(blob, repository_name)
    finally:
        client.close()


@pytest.mark.parametrize("which", ["plain_registry", "basic_registry", "tls_registry"])
@pytest.mark.parametrize("kind", ["oci", "v2s2"])
def test_skopeo_and_lamina_read_what_the_other_wrote(
    which: str, kind: str, request: pytest.FixtureRequest, repository_name: str, opened: Open,
    tmp_path: Path,
) -> None:  # fmt: skip
    from lamina.oci.registry import Credentials

    support.need("skopeo", "umoci")
    registry: Registry = request.getfixturevalue(which)
    layout = tmp_path / "layout"
    support.run("umoci", "init", "--layout", layout)
    support.run("umoci", "new", "--image", f"{layout}:one")
    (tmp_path / "file").write_bytes(DATA)
    support.run(
        "umoci", "insert", "--rootless", "--image", f"{layout}:one", tmp_path / "file", "/file"
    )
    copy = ("skopeo", "--insecure-policy", "copy", "-q")
    there = f"docker://{registry.host}/{repository_name}"
    support.run(*copy, "-f", kind, *registry.skopeo("dest"), f"oci:{layout}:one", f"{there}:one")

    if registry.ca:
        (tmp_path / "certs" / registry.host).mkdir(parents=True)
        (tmp_path / "certs" / registry.host / "ca.crt").write_bytes(registry.ca.read_bytes())
    who = Credentials(registry.user, registry.password or "") if registry.user else None
    repository = opened(registry.host, repository_name, credentials=who)
    other = opened(registry.host, f"{repository_name}/other", credentials=who)
    found = repository.resolve("one")
    data = read_document(repository, found)
    manifest = decode_manifest(data, found.media_type)
    assert isinstance(manifest, Manifest)
    for blob in (manifest.config, *manifest.layers):
        with verified(repository.open(blob), blob) as source:
            other.put(blob, source)
    other.put_manifest(found, data, "two")

    inspected = support.run(
        "skopeo", "inspect", "--raw", *[o.replace("--src-", "--") for o in registry.skopeo("src")],
        f"{there}/other:two",
    ).stdout  # fmt: skip
    assert inspected == data
    support.run(*copy, *registry.skopeo("src"), f"{there}/other:two", f"oci:{tmp_path}/back:two")
    assert json.loads((tmp_path / "back/index.json").read_bytes())["manifests"]
