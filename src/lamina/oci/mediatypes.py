"""Media types of images: those of OCI, and Docker's of the same meaning.

Sources: image-spec, media-types.md, with its compatibility matrix; distribution's
manifest-v2-2.md for Docker's.
"""

from __future__ import annotations

from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"

DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_NON_DISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_LAYERS: Final = {
    OCI_LAYER: "none",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    _NON_DISTRIBUTABLE: "none",
    f"{_NON_DISTRIBUTABLE}+gzip": "gzip",
    f"{_NON_DISTRIBUTABLE}+zstd": "zstd",
    DOCKER_LAYER: "none",
    f"{DOCKER_LAYER}.gzip": "gzip",
    f"{DOCKER_LAYER}.zstd": "zstd",  # no specification has it; buildkit and podman have written it
    f"{_FOREIGN}.gzip": "gzip",
    _FOREIGN: "none",
}


def is_layer(media_type: str) -> bool:
    """Whether it is that of a layer's tar, compressed or not."""
    return media_type in _LAYERS


def is_non_distributable(media_type: str) -> bool:
    """Whether it is that of a layer which registries do not keep: Windows's base layers."""
    return media_type.startswith((_NON_DISTRIBUTABLE, _FOREIGN))


def layer_compression(media_type: str) -> str:
    """``none``, ``gzip`` or ``zstd``: how a layer of this media type says it is compressed.

    Raises KeyError for what is no layer.
    """
    return _LAYERS[media_type]


def layer_type(compression: str) -> str:
    """OCI's media type of a layer compressed by ``none``, ``gzip`` or ``zstd``."""
    return OCI_LAYER if compression == "none" else f"{OCI_LAYER}+{compression}"
