"""Image layouts (image-spec, image-layout.md): directories and archives with blobs in them.

    oci-layout          the version
    index.json          the images, by name
    blobs/ALG/HEX       all content, named by its digest

:class:`Layout` reads one out of any :class:`Files`; :class:`LayoutDirectory` writes one too.
"""

from lamina.oci.layout.directory import LayoutDirectory
from lamina.oci.layout.files import Files, Folder, Region
from lamina.oci.layout.reading import Layout

__all__ = ["Files", "Folder", "Layout", "LayoutDirectory", "Region"]
