"""An image layout as a source of images, whatever its files lie in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from lamina.errors import BlobNotFound, InvalidImage, printable
from lamina.oci import mediatypes
from lamina.oci.digest import parts
from lamina.oci.layout.files import Files, read_file
from lamina.oci.layout.names import find, grouped
from lamina.oci.manifest import SIZE_LIMIT, Index, decode_manifest

if TYPE_CHECKING:
    from lamina.oci.content import Named
    from lamina.oci.descriptor import Descriptor
    from lamina.types import Digest

OCI_LAYOUT = "oci-layout"
INDEX = "index.json"
VERSION_FILE = b'{"imageLayoutVersion":"1.0.0"}'
_VERSION_LIMIT = 64 << 10


def blob_path(digest: Digest) -> str:
    """``blobs/ALG/HEX``; :class:`InvalidImage` for what is no digest."""
    return "blobs/{}/{}".format(*parts(digest))


class _Version(msgspec.Struct, rename="camel"):
    image_layout_version: str


def check_version(files: Files) -> None:
    """Raise :class:`InvalidImage` unless ``oci-layout`` says version 1."""
    where = printable(files.description)
    try:
        data = read_file(files, OCI_LAYOUT, _VERSION_LIMIT)
        version = msgspec.json.decode(data, type=_Version).image_layout_version
    except FileNotFoundError:
        raise InvalidImage(f"{where} is no image layout: it has no file {OCI_LAYOUT}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidImage(f"{OCI_LAYOUT} of {where}: {error}") from error
    if version.partition(".")[0] != "1":
        raise InvalidImage(f"{where} is an image layout of version {printable(version)}, not 1")


def read_index(files: Files) -> Index:
    """The layout's ``index.json``; :class:`InvalidImage` if it is missing or damaged."""
    where = f"{INDEX} of {printable(files.description)}"
    try:
        index = decode_manifest(read_file(files, INDEX, SIZE_LIMIT), mediatypes.OCI_INDEX)
    except FileNotFoundError:
        raise InvalidImage(f"{where} is missing") from None
    except InvalidImage as error:
        raise InvalidImage(f"{where}: {error}") from error
    assert isinstance(index, Index)
    return index


class Layout:
    """The images of a layout (a :class:`lamina.oci.content.Source`).

    The index is read anew each time, so that what another process writes meanwhile is seen.
    """

    def __init__(self, files: Files) -> None:
        """Closes ``files`` with itself, also when it raises :class:`InvalidImage`."""
        self.files = files
        try:
            check_version(files)
        except BaseException:
            files.close()
            raise

    @property
    def description(self) -> str:
        """Where its files lie."""
        return self.files.description

    def images(self) -> Sequence[Named]:
        """The images that its index names, in order; what stands beside images is left out."""
        return grouped(read_index(self.files).manifests, self.more_names())

    def resolve(self, name: str | None) -> Descriptor:
        """See :meth:`lamina.oci.content.Source.resolve`; a tag of this layout alone does too."""
        entries = read_index(self.files).manifests
        images = grouped(entries, self.more_names())
        return find(images, entries, name, self.description)

    def more_names(self) -> dict[str, Sequence[str]]:
        """Names that are not in the index, by digest."""
        return {}

    def open(self, descriptor: Descriptor, offset: int = 0) -> BinaryIO:
        """The bytes of a blob, if the file has as many as the descriptor says."""
        try:
            stream, size = self.files.open(blob_path(descriptor.digest))
        except FileNotFoundError:
            raise BlobNotFound(descriptor.digest, self.description) from None
        try:
            if size != descriptor.size:
                raise InvalidImage(
                    f"blob {descriptor.digest} of {printable(self.description)} has {size} bytes, "
                    f"not {descriptor.size} as is said of it"
                )
            stream.seek(offset)
        except BaseException:
            stream.close()
            raise
        return stream

    def close(self) -> None:
        """Close the files."""
        self.files.close()
