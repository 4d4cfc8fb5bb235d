"""With its blobs kept an image goes on under the digest that it came with."""

from __future__ import annotations

import json

import pytest

from lamina.oci.digest import sha256
from lamina.oci.registry import Credentials, Options
from lamina.store import Store
from tests.oci import peers
from tests.peers.conftest import Original
from tests.peers.test_ways_in import transport
from tests.registries import PASSWORD, USER, Registry

pytestmark = pytest.mark.root

OURS = Options(hosts_directories=(), certificate_directories=())
WITH_PASSWORD = Options(
    hosts_directories=(), certificate_directories=(), credentials=Credentials(USER, PASSWORD)
)


@pytest.mark.parametrize("keep_blobs", [True, False])
@pytest.mark.parametrize("original", ["docker", "podman", "buildah", "umoci"], indirect=True)
def test_a_manifest_keeps_its_digest_with_the_blobs(
    skopeo: peers.Skopeo,
    original: Original,
    store: Store,
    plain_registry: Registry,
    basic_registry: Registry,
    repository_name: str,
    keep_blobs: bool,
) -> None:
    """Without them the layers' digests change, which is said; the configuration's does not."""
    one, other = (f"{r.host}/{repository_name}:1" for r in (plain_registry, basic_registry))
    skopeo.copy(transport(original), f"docker://{one}", *plain_registry.skopeo("dest"))
    came = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{one}")
    store.pull(one, keep_blobs=keep_blobs, options=OURS)
    saved = store.push(one, other, options=WITH_PASSWORD)
    creds = ("--tls-verify=false", "--creds", f"{USER}:{PASSWORD}")
    went = skopeo("inspect", "--raw", *creds, f"docker://{other}")
    assert saved.manifest.digest == sha256(went.encode())
    assert json.loads(went)["config"]["digest"] == json.loads(came)["config"]["digest"]
    assert (went == came) is keep_blobs
    assert bool(saved.changed) is not keep_blobs
    away = f"dir:{store.root}-out"
    skopeo.copy(f"docker://{other}", away, *basic_registry.skopeo("src"))  # all blobs, verified
