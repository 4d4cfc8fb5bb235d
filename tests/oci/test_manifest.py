"""Manifests and indexes as they are read."""

from __future__ import annotations

import json

import pytest

from lamina.errors import InvalidImage
from lamina.oci import mediatypes
from lamina.oci.descriptor import described
from lamina.oci.manifest import SIZE_LIMIT, Index, Manifest, decode_manifest

CONFIG = {"mediaType": mediatypes.OCI_CONFIG, "digest": "sha256:" + "1" * 64, "size": 2}


def manifest(**members: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": []} | members).encode()


def test_a_manifest_keeps_members_that_it_does_not_know() -> None:
    data = manifest(surprise={"a": [1]}, config=CONFIG | {"odd": 1})
    found = decode_manifest(data, mediatypes.OCI_MANIFEST)
    assert isinstance(found, Manifest)
    again = json.loads(found.encode())
    assert again["surprise"] == {"a": [1]}
    assert again["config"]["odd"] == 1


def test_an_index_tells_platforms() -> None:
    entry = described(b"{}", mediatypes.OCI_MANIFEST)
    members = {
        "platform": {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1"}
    }
    data = json.dumps(
        {"schemaVersion": 2, "manifests": [json.loads(entry.encode()) | members]}
    ).encode()
    found = decode_manifest(data, mediatypes.OCI_INDEX)
    assert isinstance(found, Index)
    platform = found.manifests[0].platform
    assert platform is not None
    assert (platform.variant, platform.os_version) == ("v7", "1")


@pytest.mark.parametrize(
    ("data", "media_type", "why"),
    [
        (b"[]", mediatypes.OCI_MANIFEST, "not an image manifest"),
        (b"\xff", mediatypes.OCI_MANIFEST, "not an image manifest"),
        (b"[" * 100_000, mediatypes.OCI_MANIFEST, "not an image manifest"),
        (b'{"schemaVersion": 1}', mediatypes.OCI_MANIFEST, "schema 1"),
        (manifest(fsLayers=[]), mediatypes.OCI_MANIFEST, "schema 1"),
        (manifest(manifests=[]), mediatypes.OCI_MANIFEST, "has manifests"),
        (manifest(manifests=[]), mediatypes.OCI_INDEX, "has config"),
        (manifest(mediaType=mediatypes.OCI_INDEX), mediatypes.OCI_MANIFEST, "says it is"),
        (manifest(), "text/html", "neither"),
        (b" " * (SIZE_LIMIT + 1), mediatypes.OCI_MANIFEST, "at most"),
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes, media_type: str, why: str) -> None:
    with pytest.raises(InvalidImage, match=why):
        decode_manifest(data, media_type)
