"""What ``docker save`` writes, as a source of images.

``manifest.json`` is a list of ``{"Config": PATH, "RepoTags": [NAME, ...], "Layers": [PATH, ...]}``
(moby, image/spec/v1.2.md, "Combined Image JSON + Filesystem Changeset Format"). There is no
manifest as registries have it, so that one is made: it names each layer by its DiffID, which the
configuration has, so that no layer need be read for it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from lamina.archive.compression import detect
from lamina.archive.compression.formats import HEAD_SIZE
from lamina.errors import BlobNotFound, InvalidImage, InvalidName, printable
from lamina.oci import mediatypes
from lamina.oci.archives.kinds import DOCKER_MANIFEST
from lamina.oci.config import CONFIG_LIMIT, ImageConfig
from lamina.oci.content import Named
from lamina.oci.descriptor import Descriptor, described
from lamina.oci.digest import check_digest
from lamina.oci.layout import Layout
from lamina.oci.layout.files import Files, OpenFile, read_file
from lamina.oci.layout.names import find
from lamina.oci.manifest import SIZE_LIMIT, Manifest, decode_manifest
from lamina.oci.reference import Reference
from lamina.types import DiffId, Digest

_CHUNK = 1 << 20


class Item(msgspec.Struct, rename="pascal"):
    """One image in ``manifest.json``."""

    config: str
    repo_tags: list[str] | None = None
    layers: list[str] | None = None


def read_items(files: Files) -> list[Item]:
    """The images of ``manifest.json``; :class:`InvalidImage` if it is missing or damaged."""
    where = f"{DOCKER_MANIFEST} of {printable(files.description)}"
    try:
        data = read_file(files, DOCKER_MANIFEST, SIZE_LIMIT)
        return msgspec.json.decode(data, type=list[Item])
    except FileNotFoundError:
        raise InvalidImage(f"{where} is missing") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidImage(f"{where}: {error}") from error


def tag_names(item: Item, where: str) -> list[str]:
    """The full names of an image; :class:`InvalidImage` for what is no name."""
    try:
        return [str(Reference.parse(tag)) for tag in item.repo_tags or ()]
    except InvalidName as error:
        raise InvalidImage(f"{DOCKER_MANIFEST} of {printable(where)}: {error}") from error


class _Image(NamedTuple):
    named: Named
    manifest: bytes


class DockerArchive:
    """The images of a docker archive (a :class:`lamina.oci.content.Source`).

    Layers that are compressed, as in archives that others than Docker made, are named by their
    own digest and for that read once.
    """

    def __init__(self, files: Files) -> None:
        """Closes ``files`` with itself, also when it raises :class:`InvalidImage`."""
        self._files = files
        try:
            self._items = read_items(files)
            self._names = [tag_names(item, files.description) for item in self._items]
        except BaseException:
            files.close()
            raise
        self._images: dict[int, _Image] = {}
        self._documents: dict[str, bytes] = {}
        self._paths: dict[str, str] = {}

    @property
    def description(self) -> str:
        """Where its files lie."""
        return self._files.description

    def images(self) -> Sequence[Named]:
        """All images, in the order of ``manifest.json``; equal ones are one."""
        found: dict[str, Named] = {}
        for number in range(len(self._items)):
            named = self._image(number).named
            known = found.get(named.descriptor.digest)
            names = dict.fromkeys([*(known.names if known else ()), *named.names])
            found[named.descriptor.digest] = Named(named.descriptor, tuple(names))
        return list(found.values())

    def resolve(self, name: str | None) -> Descriptor:
        """See :meth:`lamina.oci.content.Source.resolve`."""
        try:
            full = str(Reference.parse(name or ""))
        except InvalidName:
            full = ""
        named = [number for number, names in enumerate(self._names) if full in names]
        if len(named) == 1:
            return self._image(named[0]).named.descriptor
        return find(self.images(), [n.descriptor for n in self.images()], name, self.description)

    def open(self, descriptor: Descriptor, offset: int = 0) -> BinaryIO:
        """The bytes of an image's manifest or configuration, or of a layer."""
        stream: BinaryIO
        if descriptor.digest in self._documents:
            stream = io.BytesIO(self._documents[descriptor.digest])
        elif descriptor.digest in self._paths:
            stream = self._open_layer(self._paths[descriptor.digest], descriptor.digest).stream
        else:
            raise BlobNotFound(descriptor.digest, self.description)
        stream.seek(offset)
        return stream

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _open_layer(self, path: str, digest: str) -> OpenFile:
        try:
            return self._files.open(path)
        except FileNotFoundError:
            raise BlobNotFound(digest, f"{printable(path)} in {self.description}") from None

    def _image(self, number: int) -> _Image:
        if number not in self._images:
            self._images[number] = self._describe(self._items[number], self._names[number])
        return self._images[number]

    def _describe(self, item: Item, names: Sequence[str]) -> _Image:
        """Make an image's manifest."""
        try:
            data = read_file(self._files, item.config, CONFIG_LIMIT)
        except FileNotFoundError:
            raise BlobNotFound(item.config, self.description) from None
        diff_ids = ImageConfig.decode(data).rootfs.diff_ids
        layers = item.layers or []
        if len(layers) != len(diff_ids):
            raise InvalidImage(
                f"{DOCKER_MANIFEST} of {printable(self.description)} has {len(layers)} layers for "
                f"{printable(item.config)}, which has {len(diff_ids)} DiffIDs"
            )
        config = described(data, mediatypes.OCI_CONFIG)
        pairs = zip(layers, diff_ids, strict=True)
        manifest = Manifest(config=config, layers=[self._layer(*pair) for pair in pairs]).encode()
        found = described(manifest, mediatypes.OCI_MANIFEST)
        self._documents |= {config.digest: data, found.digest: manifest}
        return _Image(Named(found, tuple(dict.fromkeys(names))), manifest)

    def _layer(self, path: str, diff_id: DiffId) -> Descriptor:
        check_digest(diff_id)
        stream, size = self._open_layer(path, diff_id)
        with stream:
            compression = detect(stream.read(HEAD_SIZE))
            if compression in ("bzip2", "xz"):
                raise InvalidImage(
                    f"layer {printable(path)} of {printable(self.description)} is compressed by "
                    f"{compression}, which images may not be"
                )
            digest = Digest(diff_id)
            if compression != "none":
                digest = _digest_of(stream)
        self._paths[digest] = path
        return Descriptor(media_type=mediatypes.layer_type(compression), digest=digest, size=size)


class SavedLayout(Layout):
    """A docker archive that is an image layout too: the names of both count.

    Docker from 25 on writes such, and puts all names into the index; others may not.
    """

    def more_names(self) -> dict[str, Sequence[str]]:
        """What ``manifest.json`` calls images that the index has."""
        from lamina.oci.layout.reading import read_index

        by_config: dict[str, list[str]] = {}
        for item in read_items(self.files):
            names = tag_names(item, self.description)
            by_config.setdefault(item.config.rpartition("/")[2], []).extend(names)
        found: dict[str, Sequence[str]] = {}
        for entry in read_index(self.files).manifests if any(by_config.values()) else ():
            if (config := self._config_of(entry)) in by_config:
                found[entry.digest] = by_config[config]
        return found

    def _config_of(self, entry: Descriptor) -> str | None:
        """The hex digits of an image's configuration."""
        from lamina.oci.content import read_document

        if entry.media_type not in mediatypes.MANIFESTS:
            return None
        try:
            manifest = decode_manifest(read_document(self, entry), entry.media_type)
        except BlobNotFound:
            return None  # Docker names manifests of other platforms that it does not have
        assert isinstance(manifest, Manifest)
        return manifest.config.digest.rpartition(":")[2]


def _digest_of(stream: BinaryIO) -> Digest:
    import hashlib

    digest = hashlib.sha256()
    stream.seek(0)
    while data := stream.read(_CHUNK):
        digest.update(data)
    return Digest(f"sha256:{digest.hexdigest()}")
