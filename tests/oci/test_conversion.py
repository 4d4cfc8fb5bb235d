"""What of an image is found in a runtime's configuration (image-spec, conversion.md)."""

from __future__ import annotations

import pytest

from lamina.oci import ImageConfig, RunConfig
from lamina.oci.conversion import image_annotations, image_volumes

PREFIX = "org.opencontainers.image."


def image(**config: object) -> ImageConfig:
    made = ImageConfig(architecture="arm", os="linux", config=RunConfig(**config))  # type: ignore[arg-type]
    made.variant = "v7"
    made.author = "Ann"
    made.created = "2020-01-01T00:00:00Z"
    return made


def test_what_the_specification_names_becomes_annotations() -> None:
    made = image(
        stop_signal="SIGINT", exposed_ports={"80/tcp": {}, "443/udp": {}}, labels={"x": "y"}
    )
    made.extra = {"os.version": "10", "os.features": ["a", "b"]}
    assert image_annotations(made) == {
        f"{PREFIX}architecture": "arm",
        f"{PREFIX}author": "Ann",
        f"{PREFIX}created": "2020-01-01T00:00:00Z",
        f"{PREFIX}exposedPorts": "443/udp,80/tcp",
        f"{PREFIX}os": "linux",
        f"{PREFIX}os.features": "a,b",
        f"{PREFIX}os.version": "10",
        f"{PREFIX}stopSignal": "SIGINT",
        f"{PREFIX}variant": "v7",
        "x": "y",
    }


def test_a_label_wins_over_what_the_image_says_elsewhere() -> None:
    made = image(labels={f"{PREFIX}author": "Bob"})
    assert image_annotations(made)[f"{PREFIX}author"] == "Bob"


@pytest.mark.allow_log("left out: an OCI runtime would obey it")
def test_a_label_that_a_runtime_would_obey_is_left_out_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    orders = ["run.oci.hooks.stdout", "org.systemd.property.ExecStop", "org.criu.config"]
    made = image(labels={**dict.fromkeys(orders, "/etc/shadow"), "run.ocicat": "fine"})
    found = image_annotations(made)
    assert not set(orders) & found.keys()
    assert found["run.ocicat"] == "fine"
    assert [order for order in orders if order not in caplog.text] == []


def test_an_image_that_says_nothing_has_nothing() -> None:
    assert image_annotations(ImageConfig()) == {}
    assert image_volumes(ImageConfig()) == []


def test_volumes_are_in_memory_and_begin_as_the_image_has_them() -> None:
    mounts = image_volumes(image(volumes={"/var/lib/b": {}, "/a": {}}))
    assert [(m.destination, m.type) for m in mounts] == [("/a", "tmpfs"), ("/var/lib/b", "tmpfs")]
    assert all("tmpcopyup" in m.options for m in mounts)
