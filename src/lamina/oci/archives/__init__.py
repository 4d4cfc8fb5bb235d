"""Images in tar archives: what ``docker save``, ``podman save``, skopeo and ``ctr`` write.

Two forms are read and written. An **OCI archive** is the tar of an image layout. A **docker
archive** has a ``manifest.json`` that says which member is which image's configuration and layers;
Docker from 25 on, and Lamina, write one that is an image layout too, so that everybody finds
theirs.

:func:`open_archive` tells them, and a root file system's tar, apart.
"""

from lamina.oci.archives.docker import DockerArchive
from lamina.oci.archives.members import Members
from lamina.oci.archives.opening import PlainTar, open_archive
from lamina.oci.archives.replacing import replaced
from lamina.oci.archives.writing import DockerArchiveTarget, OciArchiveTarget

__all__ = [
    "DockerArchive",
    "DockerArchiveTarget",
    "Members",
    "OciArchiveTarget",
    "PlainTar",
    "open_archive",
    "replaced",
]
