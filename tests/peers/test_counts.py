"""Images of few and of many layers go through registries and archives to the other side."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.oci.registry import Options
from lamina.store import Store
from tests import daemons
from tests.adopt.trees import tree
from tests.oci import peers
from tests.peers import building
from tests.peers.comparing import unlike
from tests.registries import Registry

pytestmark = pytest.mark.root

OURS = Options(hosts_directories=(), certificate_directories=())


@pytest.mark.parametrize("count", [1, 2, 12])
def test_docker_to_podman(
    docker: daemons.Docker,
    far_podman: peers.Podman,
    store: Store,
    plain_registry: Registry,
    repository_name: str,
    tmp_path: Path,
    count: int,
) -> None:
    """Out of dockerd by ``docker push``, and into podman by an OCI archive."""
    (tmp_path / "context").mkdir()
    original = building.count_by_docker(docker, tmp_path / "context", count)
    assert len(original.diff_ids) == count
    name = f"{plain_registry.host}/{repository_name}:1"
    docker("tag", f"count:{count}", name)
    docker("push", name)
    image = store.pull(name, options=OURS)
    assert (image.id, image.diff_ids) == (original.id, original.diff_ids)
    store.save([name], tmp_path / "out.tar", format="oci-archive")
    far_podman.load(tmp_path / "out.tar")
    assert building.podman_built(far_podman, name) == original
    with far_podman.mounted(name) as root, store.container(image) as box:
        assert len(list(root.rglob("file-*"))) == count
        assert unlike(tree(box.root), tree(root)) == []


@pytest.mark.parametrize("count", [1, 2, 12])
def test_buildah_to_docker(
    podman: peers.Podman,
    far_docker: daemons.Docker,
    store: Store,
    plain_registry: Registry,
    repository_name: str,
    tmp_path: Path,
    count: int,
) -> None:
    """Out of buildah by an OCI layout, and into dockerd by ``docker pull``."""
    (tmp_path / "context").mkdir()
    original = building.count_by_buildah(podman, tmp_path / "context", count)
    assert len(original.diff_ids) == count
    podman.buildah("push", f"localhost/count:{count}", f"oci:{tmp_path}/layout:a/b:1")
    (image,) = store.load(tmp_path / "layout")
    assert (image.id, image.diff_ids) == (original.id, original.diff_ids)
    name = f"{plain_registry.host}/{repository_name}:1"
    store.push("a/b:1", name, options=OURS)
    far_docker("pull", name)
    assert building.docker_built(far_docker, name) == original
    mounted = building.docker_mounted(far_docker, name, tmp_path)
    with mounted as root, store.container(image) as box:
        assert len(list(root.rglob("file-*"))) == count
        assert unlike(tree(box.root), tree(root)) == []


def test_sixty_layers_from_umoci_to_podman_and_docker(
    far_podman: peers.Podman,
    far_docker: daemons.Docker,
    store: Store,
    plain_registry: Registry,
    repository_name: str,
    tmp_path: Path,
) -> None:
    umoci = building.Umoci(tmp_path / "layout")
    original = building.count_by_umoci(umoci, tmp_path, 60)
    assert len(original.diff_ids) == 60
    name = f"{plain_registry.host}/{repository_name}:1"
    (image,) = store.load(umoci.layout, name=name)
    assert (image.id, image.diff_ids) == (original.id, original.diff_ids)
    store.push(name, options=OURS)
    far_docker("pull", name)
    assert building.docker_built(far_docker, name) == original
    far_podman("pull", "--signature-policy", far_podman.policy, "--tls-verify=false", name)
    assert building.podman_built(far_podman, name) == original
    with far_podman.mounted(name) as root, store.container(image) as box:
        assert len(list(root.rglob("file-*"))) == 60
        assert unlike(tree(box.root), tree(root)) == []
