"""What an image in a source is: its manifest, its configuration, and what each layer must be."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.errors import InvalidImage
from lamina.oci import ImageConfig, chain_ids, mediatypes, platform
from lamina.oci.config import CONFIG_LIMIT
from lamina.oci.content import Source, read_document
from lamina.oci.copying import check_config
from lamina.oci.descriptor import Descriptor, Platform
from lamina.oci.digest import check_digest
from lamina.oci.manifest import Index, Manifest, decode_manifest
from lamina.types import ChainId, DiffId

_LAYERS_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Part:
    """One layer of an image: the blob that it is in its source, and what comes of it."""

    descriptor: Descriptor
    diff_id: DiffId
    chain_id: ChainId


@dataclass(frozen=True, slots=True)
class Found:
    """An image in a source, read as far as it takes to know its layers."""

    manifest: Descriptor
    document: bytes
    """The manifest, to the byte."""
    config: bytes
    parts: tuple[Part, ...]
    """Bottom first."""

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(part.descriptor.size for part in self.parts)


def resolve(
    source: Source, descriptor: Descriptor, wanted: platform.Spec, *, strict: bool = False
) -> Found:
    """Read manifest and configuration of the image that ``descriptor`` names.

    Of an index the image for ``wanted`` is taken; an image that is named by itself is taken
    whatever it is for, unless ``strict``.

    Raises:
        PlatformNotFound: there is none for it.
        InvalidImage, DigestMismatch, BlobNotFound: something is not what was said, or not there.
    """
    chosen, document, manifest = _manifest(source, descriptor, wanted)
    if manifest.config.media_type not in mediatypes.CONFIGS:
        kind = manifest.artifact_type or manifest.config.media_type
        raise InvalidImage(f"{chosen.digest} is no image but an artifact ({kind})")
    config = read_document(source, manifest.config, CONFIG_LIMIT)
    image = ImageConfig.decode(config)
    if chosen is descriptor and strict:
        check_config(image, wanted)
    elif chosen is not descriptor and chosen.platform is None:
        described = Platform(os=image.os, architecture=image.architecture, variant=image.variant)
        platform.check(wanted, platform.of(described))
    return Found(chosen, document, config, _parts(manifest, image))


def _manifest(
    source: Source, descriptor: Descriptor, wanted: platform.Spec
) -> tuple[Descriptor, bytes, Manifest]:
    def read(named: Descriptor) -> tuple[bytes, Manifest | Index]:
        data = read_document(source, named)
        return data, decode_manifest(data, named.media_type)

    def nested(named: Descriptor) -> Index:
        _, index = read(named)
        if not isinstance(index, Index):
            raise InvalidImage(f"{named.digest} is no index")
        return index

    data, document = read(descriptor)
    if isinstance(document, Index):
        descriptor = platform.choose(document, wanted, nested)
        data, document = read(descriptor)
    if not isinstance(document, Manifest):
        raise InvalidImage(f"{descriptor.digest} is no image manifest")
    return descriptor, data, document


def _parts(manifest: Manifest, image: ImageConfig) -> tuple[Part, ...]:
    """The layers; raises InvalidImage where manifest and configuration do not fit."""
    diff_ids = image.rootfs.diff_ids
    if len(diff_ids) > _LAYERS_LIMIT:
        raise InvalidImage(f"an image of {len(diff_ids)} layers (at most {_LAYERS_LIMIT})")
    if len(manifest.layers) != len(diff_ids):
        raise InvalidImage(
            f"a manifest of {len(manifest.layers)} layers whose configuration "
            f"{manifest.config.digest} has {len(diff_ids)} DiffIDs"
        )
    for diff_id in diff_ids:
        if not check_digest(diff_id).startswith("sha256:"):
            raise InvalidImage(f"a DiffID that is no sha256: {diff_id}")
    for layer in manifest.layers:
        check_digest(layer.digest)
        if layer.size < 0:
            raise InvalidImage(f"layer {layer.digest} is said to have {layer.size} bytes")
        if not mediatypes.is_layer(layer.media_type):
            raise InvalidImage(f"layer {layer.digest} is no tar but {layer.media_type}")
    return tuple(map(Part, manifest.layers, diff_ids, chain_ids(diff_ids)))
