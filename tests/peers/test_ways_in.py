"""Whatever way another program gives an image out, it comes in with its DiffIDs and its id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.errors import InvalidImage
from lamina.oci.registry import Options
from lamina.store import Image, Store
from tests import daemons, registries
from tests.oci import peers
from tests.peers import building
from tests.peers.building import Built
from tests.peers.conftest import Original, Reached

pytestmark = pytest.mark.root

OURS = Options(hosts_directories=(), certificate_directories=())


def is_whole(store: Store, image: Image, original: Built, *, id: bool = True) -> bool:
    """Whether the image is the original; without ``id`` in a configuration of another form."""
    assert image.diff_ids == original.diff_ids
    assert (image.id == original.id) is id
    return store.check(contents=True) == []


# -- docker


def test_docker_pushes(
    docker: daemons.Docker,
    by_docker: Original,
    store: Store,
    registry: Reached,
    repository_name: str,
) -> None:
    name = f"{registry.host}/{repository_name}:1"
    docker("tag", by_docker.tag, name)
    with logged_in(docker, registry):
        docker("push", name)
    assert is_whole(store, store.pull(name, options=registry.ours), by_docker.built)


@contextmanager
def logged_in(docker: daemons.Docker, registry: Reached) -> Iterator[None]:
    """docker's client with the registry's password, if it has one."""
    user, password = registry.registry.user, registry.registry.password
    if user and password:
        docker("login", "--username", user, "--password", password, registry.host)
    yield
    if user:
        docker("logout", registry.host)


def test_docker_saves_several_images(
    docker: daemons.Docker, by_docker: Original, store: Store, tmp_path: Path
) -> None:
    """One stands on the other: the archive has the common layers once."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {by_docker.tag}\nCOPY Dockerfile /\n")
    docker("build", "--tag", "more:1", context)
    more = building.docker_built(docker, "more:1")
    docker("save", "-o", tmp_path / "both.tar", by_docker.tag, "more:1")
    images = {name: image for image in store.load(tmp_path / "both.tar") for name in image.names}
    assert is_whole(store, images[by_docker.tag], by_docker.built)
    assert is_whole(store, images["more:1"], more)


# -- podman and buildah


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
@pytest.mark.parametrize("original", ["podman", "buildah"], indirect=True)
def test_podman_saves(
    podman: peers.Podman, original: Original, store: Store, tmp_path: Path, form: str
) -> None:
    """A configuration in Docker's form podman writes anew for the OCI's formats."""
    podman("save", "--format", form, "-o", tmp_path / "saved", original.tag)
    (image,) = store.load(tmp_path / "saved")
    assert image.names == [original.tag]
    made_anew = original.tag == "localhost/podman:1" and form != "docker-archive"
    assert is_whole(store, image, original.built, id=not made_anew)


def test_what_is_no_format_of_others_is_refused(
    podman: peers.Podman, by_podman: Original, store: Store, tmp_path: Path
) -> None:
    """``docker-dir`` is the ``dir`` transport of podman and skopeo, to look at images with."""
    podman("save", "--format", "docker-dir", "-o", tmp_path / "saved", by_podman.tag)
    with pytest.raises(InvalidImage, match="no image layout"):
        store.load(tmp_path / "saved")


@pytest.mark.parametrize("program", ["podman", "buildah"])
def test_podman_and_buildah_push(
    podman: peers.Podman,
    by_buildah: Original,
    store: Store,
    registry: Reached,
    repository_name: str,
    program: str,
) -> None:
    name = f"{registry.host}/{repository_name}:1"
    push(podman, program, *registry.podman, by_buildah.tag, f"docker://{name}")
    assert is_whole(store, store.pull(name, options=registry.ours), by_buildah.built)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "zstd:chunked"])
@pytest.mark.parametrize("program", ["podman", "buildah"])
def test_podman_and_buildah_compress(
    podman: peers.Podman,
    skopeo: peers.Skopeo,
    by_buildah: Original,
    store: Store,
    tmp_path: Path,
    compression: str,
    program: str,
) -> None:
    """In a registry of its own: they would take blobs of another compression that are there."""
    (tmp_path / "registry").mkdir()
    with registries.serve(tmp_path / "registry") as fresh:
        far = f"docker://{fresh.host}/a/b:1"
        options = ["--tls-verify=false", "--compression-format", compression]
        push(podman, program, *options, by_buildah.tag, far)
        manifest = skopeo("inspect", "--raw", "--tls-verify=false", far)
        image = store.pull(f"{fresh.host}/a/b:1", options=OURS)
    types = {layer["mediaType"].rpartition("+")[2] for layer in json.loads(manifest)["layers"]}
    assert types == {compression.partition(":")[0]}
    assert ("io.containers.zstd-chunked" in manifest) is (compression == "zstd:chunked")
    assert is_whole(store, image, by_buildah.built)


def push(podman: peers.Podman, program: str, *argv: str) -> None:
    if program == "buildah":
        podman.buildah("push", *argv)
    else:
        podman("push", "--signature-policy", podman.policy, *argv)


@pytest.mark.parametrize("transport", ["oci:{}:a/b:1", "oci-archive:{}:a/b:1"])
def test_buildah_pushes_to_files(
    podman: peers.Podman, by_buildah: Original, store: Store, tmp_path: Path, transport: str
) -> None:
    podman.buildah("push", by_buildah.tag, transport.format(tmp_path / "out"))
    (image,) = store.load(tmp_path / "out")
    assert image.names == ["a/b:1"]
    assert is_whole(store, image, by_buildah.built)


# -- skopeo, from what each of them has


FILES = {
    "oci": "oci:{}:a/b:1",
    "oci-archive": "oci-archive:{}:a/b:1",
    "docker-archive": "docker-archive:{}:a/b:1",
}


def transport(original: Original) -> str:
    """What skopeo calls an original's archive or layout."""
    if original.path.is_dir():
        return f"oci:{original.path}:{original.tag}"
    kind = "oci" if original.tag == "localhost/buildah:1" else "docker"
    return f"{kind}-archive:{original.path}:{original.tag}"


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("original", ["docker", "buildah", "umoci"], indirect=True)
def test_skopeo_copies_to_files(
    skopeo: peers.Skopeo, original: Original, store: Store, tmp_path: Path, form: str
) -> None:
    """A configuration in Docker's form skopeo writes anew for the OCI's formats."""
    skopeo.copy(transport(original), FILES[form].format(tmp_path / "out"))
    (image,) = store.load(tmp_path / "out")
    assert image.names == ["a/b:1"]
    made_anew = original.tag == building.NAME and form != "docker-archive"
    assert is_whole(store, image, original.built, id=not made_anew)


@pytest.mark.parametrize("original", ["docker", "buildah", "umoci"], indirect=True)
def test_skopeo_copies_to_registries(
    skopeo: peers.Skopeo,
    original: Original,
    store: Store,
    registry: Reached,
    repository_name: str,
) -> None:
    name = f"{registry.host}/{repository_name}:1"
    skopeo.copy(transport(original), f"docker://{name}", *registry.registry.skopeo("dest"))
    assert is_whole(store, store.pull(name, options=registry.ours), original.built)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_skopeo_takes_from_dockerd(
    docker: daemons.Docker,
    skopeo: peers.Skopeo,
    by_docker: Original,
    store: Store,
    tmp_path: Path,
    compression: str,
) -> None:
    skopeo.copy(
        f"docker-daemon:{by_docker.tag}", f"oci:{tmp_path}/out:1",
        "--src-daemon-host", docker.host, "--dest-compress-format", compression,
    )  # fmt: skip
    (image,) = store.load(tmp_path / "out")
    assert is_whole(store, image, by_docker.built, id=False)


# -- containerd


@pytest.mark.parametrize("original", ["docker", "podman", "buildah", "umoci_plain"], indirect=True)
def test_containerd_exports(
    containerd: daemons.Containerd,
    skopeo: peers.Skopeo,
    original: Original,
    store: Store,
    tmp_path: Path,
) -> None:
    archive = original.path
    if archive.is_dir():
        archive = tmp_path / "in.tar"
        skopeo.copy(transport(original), f"oci-archive:{archive}:localhost/umoci:1")
    containerd("images", "import", "--no-unpack", archive)
    (name,) = containerd("images", "ls", "--quiet").split()
    containerd("images", "export", tmp_path / "out.tar", name)
    (image,) = store.load(tmp_path / "out.tar")
    assert is_whole(store, image, original.built)


# -- umoci


def test_a_layer_that_umoci_has_twice_is_there_twice(
    by_umoci_plain: Original, store: Store
) -> None:
    (image,) = store.load(by_umoci_plain.path, [by_umoci_plain.tag])
    assert len(image.diff_ids) == len(set(image.diff_ids)) + 1
    assert is_whole(store, image, by_umoci_plain.built)


def test_what_umoci_says_of_an_image_is_kept(by_umoci_plain: Original, store: Store) -> None:
    """Steps of the history that made no layer among it."""
    (image,) = store.load(by_umoci_plain.path, [by_umoci_plain.tag])
    history = image.config.history or []
    assert [step.empty_layer for step in history].count(True) == 1
    assert image.defaults.cmd == ["/bin/su"]
