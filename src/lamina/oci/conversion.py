"""What of an image's configuration goes into a runtime's (image-spec, conversion.md).

Command, environment, directory and user are given by whoever runs it; here is the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.log import Log
from lamina.oci.runtime import Mount

if TYPE_CHECKING:
    from lamina.oci.config import ImageConfig

log = Log(__name__)

_PREFIX = "org.opencontainers.image."
_UNSAFE = ("run.oci.", "org.systemd.property.", "org.criu.")
"""Annotations by which crun and runc are told to do things on the host."""


def image_annotations(image: ImageConfig) -> dict[str, str]:
    """The labels, and what else conversion.md wants to be found as annotations; sorted.

    Labels win. Those that a runtime would take for orders are left out with a warning.
    """
    run = image.config
    features = image.extra.get("os.features")
    implicit = {
        "os": image.os,
        "architecture": image.architecture,
        "variant": image.variant,
        "os.version": image.extra.get("os.version"),
        "os.features": ",".join(map(str, features)) if isinstance(features, list) else None,
        "author": image.author,
        "created": image.created,
        "stopSignal": run and run.stop_signal,
        "exposedPorts": run and ",".join(sorted(run.exposed_ports or ())),
    }
    found = {_PREFIX + key: str(value) for key, value in implicit.items() if value}
    for key, value in ((run and run.labels) or {}).items():
        if key.startswith(_UNSAFE):
            log.warning("the label %s is left out: an OCI runtime would obey it", key)
        elif key:
            found[key] = value
    return dict(sorted(found.items()))


def image_volumes(image: ImageConfig) -> list[Mount]:
    """A file system in memory for each volume, filled with what the image has there."""
    names = (image.config and image.config.volumes) or ()
    options = ("nosuid", "nodev", "relatime", "tmpcopyup")
    return [Mount(name, "tmpfs", "tmpfs", options) for name in sorted(names)]
