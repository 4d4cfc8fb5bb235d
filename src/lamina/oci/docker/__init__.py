"""What Docker keeps below its root (``/var/lib/docker``): formats only, read and never written.

    aufs/{layers,diff,mnt}/ID             the storage driver's layers (lamina.oci.docker.branches)
    image/aufs/imagedb/content/sha256/    image configurations, called by their digest
    image/aufs/imagedb/metadata/sha256/   ID/parent: the image that one was built on
    image/aufs/layerdb/sha256/CHAIN/      cache-id, diff, parent, size, tar-split.json.gz
    image/aufs/layerdb/mounts/CONTAINER/  mount-id, init-id, parent
    image/aufs/repositories.json          names
    containers/ID/config.v2.json          containers

Everything may have been damaged, or made to mislead: files are opened below one descriptor, are
regular, and are read up to a limit; what can't be what it should is a :class:`Fault`, and what
stands on it is left out.
"""

from lamina.oci.docker.branches import Branches
from lamina.oci.docker.catalog import Catalog, read_catalog
from lamina.oci.docker.files import Files
from lamina.oci.docker.records import ContainerRecord, Fault, FaultKind, ImageRecord, LayerRecord

__all__ = [
    "Branches",
    "Catalog",
    "ContainerRecord",
    "Fault",
    "FaultKind",
    "Files",
    "ImageRecord",
    "LayerRecord",
    "read_catalog",
]
