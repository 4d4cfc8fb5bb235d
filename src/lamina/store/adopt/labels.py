"""What Docker kept of how a container is run, as this store's containers keep it."""

from __future__ import annotations

import json

from lamina.oci.docker import ContainerRecord

RUN_LABEL = "io.lamina.run"
"""Where the command line keeps how a container is run (lamina.cli.running)."""


def labels(box: ContainerRecord) -> dict[str, str]:
    """The container's own labels, and that one. Of networks there are only two."""
    how = {
        "env": dict(box.env),
        "cwd": box.working_dir or None,
        "user": box.user or None,
        "network": "none" if box.network == "none" else "host",
        "hostname": box.hostname or None,
        "volumes": box.volumes,
        "interactive": False,
    }
    return {**box.labels, RUN_LABEL: json.dumps(how)}
