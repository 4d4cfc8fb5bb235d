"""An image that came from one program goes to the next, with its DiffIDs, its id and its tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamina.store import Image, Store
from lamina.store.transfer.moving import Form
from tests import daemons
from tests.adopt.trees import tree
from tests.oci import peers
from tests.peers import building
from tests.peers.comparing import IMPLIED, unlike
from tests.peers.conftest import Original, Reached
from tests.peers.test_ways_in import logged_in

pytestmark = pytest.mark.root

OTHERS = ("docker", "podman", "buildah", "umoci_plain")
NAME = "localhost/out:1"


@pytest.fixture
def image(original: Original, full: Store) -> Image:
    """The original in our store, called NAME."""
    (found,) = full.load(original.path, [original.tag], name=NAME)
    return found


@pytest.fixture
def pushed(image: Image, full: Store, registry: Reached, repository_name: str) -> str:
    """Its name in a registry."""
    name = f"{registry.host}/{repository_name}:1"
    full.push(NAME, name, options=registry.ours)
    return name


@pytest.fixture
def saved(image: Image, full: Store, form: Form, tmp_path: Path) -> Path:
    """The archive or layout that it was saved to."""
    full.save([NAME], tmp_path / "saved", format=form)
    return tmp_path / "saved"


def undated(original: Original) -> set[str]:
    """Names to which not everybody gives the same time."""
    return IMPLIED if original.tag == "plain" else set()


in_a_registry = pytest.mark.parametrize(
    ("registry", "original"),
    [("plain", "docker"), ("basic", "podman"), ("tls", "buildah"), ("plain", "umoci_plain")],
    indirect=True,
)
every = pytest.mark.parametrize("original", OTHERS, indirect=True)


# -- docker


def assert_docker_has(docker: daemons.Docker, name: str, original: Original, ground: Path) -> None:
    assert building.docker_built(docker, name) == original.built
    with building.docker_mounted(docker, name, ground) as root:
        assert unlike(tree(root), original.tree, undated=undated(original)) == []


@every
@pytest.mark.parametrize("form", ["docker-archive"])
def test_docker_loads(
    far_docker: daemons.Docker, original: Original, saved: Path, tmp_path: Path
) -> None:
    far_docker("load", "-i", saved)
    assert_docker_has(far_docker, NAME, original, tmp_path)


@in_a_registry
def test_docker_pulls(
    far_docker: daemons.Docker,
    original: Original,
    pushed: str,
    registry: Reached,
    tmp_path: Path,
) -> None:
    with logged_in(far_docker, registry):
        far_docker("pull", pushed)
    assert_docker_has(far_docker, pushed, original, tmp_path)


# -- podman


def assert_podman_has(podman: peers.Podman, name: str, original: Original) -> None:
    assert building.podman_built(podman, name) == original.built
    with podman.mounted(name) as root:
        assert unlike(tree(root), original.tree, undated=undated(original)) == []


@every
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_podman_loads(far_podman: peers.Podman, original: Original, saved: Path) -> None:
    """Of a layout in a directory podman takes no names."""
    far_podman.load(saved)
    name = NAME if saved.is_file() else original.built.id.removeprefix("sha256:")
    assert_podman_has(far_podman, name, original)


@in_a_registry
def test_podman_pulls(
    far_podman: peers.Podman, original: Original, pushed: str, registry: Reached
) -> None:
    far_podman("pull", "--signature-policy", far_podman.policy, *registry.podman, pushed)
    assert_podman_has(far_podman, pushed, original)


# -- umoci


@pytest.mark.parametrize("original", [*OTHERS, "umoci"], indirect=True)
def test_umoci_unpacks(image: Image, original: Original, full: Store, tmp_path: Path) -> None:
    image.tag("tag")
    full.save([NAME], tmp_path / "layout", format="oci")
    theirs = building.umoci_tree(tmp_path / "layout", NAME, tmp_path)
    assert unlike(theirs, original.tree) == []


# -- containerd


@every
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_containerd_imports(
    containerd: daemons.Containerd, original: Original, saved: Path, tmp_path: Path
) -> None:
    containerd("images", "import", saved)
    assert containerd("images", "ls", "--quiet").split() == [NAME]
    config = containerd("content", "get", original.built.id)
    assert json.loads(config)["rootfs"]["diff_ids"] == original.built.diff_ids
    root = tmp_path / "root"
    root.mkdir()
    containerd("images", "mount", NAME, root)
    try:
        assert unlike(tree(root), original.tree, undated=undated(original)) == []
    finally:
        containerd("images", "unmount", "--rm", root)


# -- skopeo


@pytest.mark.parametrize("original", [*OTHERS, "umoci"], indirect=True)
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_skopeo_reads(
    skopeo: peers.Skopeo, original: Original, saved: Path, form: Form, tmp_path: Path
) -> None:
    where = f"{form}:{saved}:{NAME}"
    assert skopeo.diff_ids(where) == original.built.diff_ids
    assert json.loads(skopeo("inspect", "--raw", where))["config"]["digest"] == original.built.id
    skopeo.copy(where, f"dir:{tmp_path}/read")  # all blobs, verified


@in_a_registry
def test_skopeo_inspects_what_was_pushed(
    skopeo: peers.Skopeo, original: Original, pushed: str, registry: Reached
) -> None:
    config = skopeo("inspect", "--config", *registry.podman, f"docker://{pushed}")
    assert json.loads(config)["rootfs"]["diff_ids"] == original.built.diff_ids
    manifest = skopeo("inspect", "--raw", *registry.podman, f"docker://{pushed}")
    assert json.loads(manifest)["config"]["digest"] == original.built.id


# -- what umoci alone reads


@pytest.mark.parametrize("original", ["umoci"], indirect=True)
@pytest.mark.parametrize("form", ["docker-archive"])
def test_docker_and_podman_refuse_whiteouts_below_a_file(
    far_docker: daemons.Docker, far_podman: peers.Podman, saved: Path
) -> None:
    """``umoci repack`` writes them where a file takes a directory's place; see their messages."""
    with pytest.raises(pytest.fail.Exception, match="not a directory"):
        far_docker("load", "-i", saved)
    with pytest.raises(pytest.fail.Exception, match="processing tar file"):
        far_podman.load(saved)
