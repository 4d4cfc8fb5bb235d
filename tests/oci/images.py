"""Small images for tests, made of bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lamina.archive.compression import Compression, compress
from lamina.oci import ImageConfig, RootFs, RunConfig, mediatypes, sha256
from lamina.oci.config import CONFIG_LIMIT
from lamina.oci.content import Source, Target, read_document, verified
from lamina.oci.descriptor import Descriptor, Platform, described
from lamina.oci.manifest import Index, Manifest
from lamina.types import DiffId


@dataclass
class Made:
    """An image, or an index of images: its document and blobs (of an image the
    configuration, then the layers)."""

    top: Descriptor
    data: bytes
    blobs: list[tuple[Descriptor, bytes]] = field(default_factory=list)
    parts: Sequence[Made] = ()


def tar(files: Mapping[str, bytes]) -> bytes:
    """A tar of these files."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def make(
    *layers: Mapping[str, bytes],
    compression: str = "none",
    architecture: str = "amd64",
    label: str = "",
) -> Made:
    """An image of these layers, bottom first."""
    tars = [tar(files) for files in layers] or [tar({"hello": b"world"})]
    config = ImageConfig(
        created="2020-01-01T00:00:00Z",
        architecture=architecture,
        os="linux",
        config=RunConfig(cmd=["/bin/true"], labels={"label": label}),
        rootfs=RootFs(diff_ids=[DiffId(sha256(data)) for data in tars]),
    ).encode()
    packed = [b"".join(compress([data], Compression(compression))) for data in tars]
    described_layers = [described(data, mediatypes.layer_type(compression)) for data in packed]
    described_config = described(config, mediatypes.OCI_CONFIG)
    data = Manifest(config=described_config, layers=described_layers).encode()
    blobs = [(described_config, config), *zip(described_layers, packed, strict=True)]
    return Made(described(data, mediatypes.OCI_MANIFEST), data, blobs)


def index(*images: Made, architectures: Sequence[str] = ("amd64", "arm64")) -> Made:
    """An index of these images, one a platform."""
    entries = []
    for image, architecture in zip(images, architectures, strict=True):
        entry = image.top.copy()
        entry.platform = Platform(os="linux", architecture=architecture)
        entries.append(entry)
    data = Index(manifests=entries).encode()
    return Made(described(data, mediatypes.OCI_INDEX), data, parts=images)


def put(target: Target, made: Made, *names: str) -> None:
    """Write an image as any caller would."""
    _put_content(target, made)
    for name in names or (None,):
        target.put_manifest(made.top, made.data, name)


def _put_content(target: Target, made: Made) -> None:
    for part in made.parts:
        _put_content(target, part)
        target.put_manifest(part.top, part.data, None)
    for descriptor, data in made.blobs:
        if not target.has(descriptor):
            with verified(io.BytesIO(data), descriptor) as stream:
                target.put(descriptor, stream)


def diff_ids(source: Source, name: str | None = None) -> list[DiffId]:
    """The DiffIDs of an image, all of whose blobs are read on the way."""
    found = source.resolve(name)
    manifest = Manifest.decode(read_document(source, found))
    for layer in manifest.layers:
        with verified(source.open(layer), layer) as stream:
            while stream.read(1 << 16):
                pass
    return ImageConfig.decode(read_document(source, manifest.config, CONFIG_LIMIT)).rootfs.diff_ids


def made_diff_ids(made: Made) -> list[DiffId]:
    """Those that :func:`make` wrote into the configuration."""
    return ImageConfig.decode(made.blobs[0][1]).rootfs.diff_ids
