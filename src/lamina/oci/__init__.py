"""Formats of the Open Container Initiative; no knowledge of any store.

A name is loaded when it is first used: of what is here, starting a container needs next to
nothing.
"""

from __future__ import annotations

from lamina.lazy import loader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamina.oci.config import History as History
    from lamina.oci.config import ImageConfig as ImageConfig
    from lamina.oci.config import RootFs as RootFs
    from lamina.oci.config import RunConfig as RunConfig
    from lamina.oci.defaults import Defaults as Defaults
    from lamina.oci.digest import chain_ids as chain_ids
    from lamina.oci.digest import hex_of as hex_of
    from lamina.oci.digest import sha256 as sha256
    from lamina.oci.markers import is_image_archive_member as is_image_archive_member
    from lamina.oci.reference import normalize as normalize

_HOMES = {
    "Defaults": "lamina.oci.defaults",
    "History": "lamina.oci.config",
    "ImageConfig": "lamina.oci.config",
    "RootFs": "lamina.oci.config",
    "RunConfig": "lamina.oci.config",
    "chain_ids": "lamina.oci.digest",
    "hex_of": "lamina.oci.digest",
    "is_image_archive_member": "lamina.oci.markers",
    "normalize": "lamina.oci.reference",
    "sha256": "lamina.oci.digest",
}
__all__ = [
    "Defaults",
    "History",
    "ImageConfig",
    "RootFs",
    "RunConfig",
    "chain_ids",
    "hex_of",
    "is_image_archive_member",
    "normalize",
    "sha256",
]

__getattr__, __dir__ = loader(__name__, _HOMES)
