from __future__ import annotations

import json

import pytest

from lamina.errors import InvalidImage
from lamina.oci import History, ImageConfig

DOCUMENT = {
    "created": "2026-01-02T03:04:05Z",
    "architecture": "arm64",
    "os": "linux",
    "moby.buildkit.buildinfo.v1": {"frontend": "dockerfile.v0"},
    "extra": 1,
    "config": {"Env": ["PATH=/bin", "A=1", "A=2=3"], "Shell": ["/bin/sh"], "Healthcheck": {}},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64], "base_layer": "x"},
    "history": [{"created_by": "RUN x", "id": 7}, {"empty_layer": True}],
}


def test_what_the_specification_does_not_name_survives() -> None:
    image = ImageConfig.decode(json.dumps(DOCUMENT).encode())
    assert json.loads(image.encode()) == DOCUMENT


def test_a_copy_shares_nothing() -> None:
    image = ImageConfig.decode(json.dumps(DOCUMENT).encode())
    copy = image.copy()
    copy.rootfs.diff_ids.clear()
    copy.extra["moby.buildkit.buildinfo.v1"]["frontend"] = "other"
    copy.history = [History(comment="new")]
    assert json.loads(image.encode()) == DOCUMENT


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"rootfs": 1}', b'{"history": [1]}', b'{"config": {"Env": "A"}}', b"\xff"],
)
def test_what_is_no_configuration_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="not an image configuration"):
        ImageConfig.decode(data)


def test_source_date_epoch_is_the_time_of_making(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert ImageConfig.for_this_machine().created == "2023-11-14T22:13:20Z"
    assert ImageConfig.for_this_machine().encode() == ImageConfig.for_this_machine().encode()
