"""Layers, images and containers over one driver; everything that is kept in a database.

A name is loaded when it is first used. In the modules, too, what commits, imports, prunes or
checks is imported by the methods that do so: none of it is needed to start a container, and all
of it together takes longer to import than the container to start.
"""

from __future__ import annotations

from lamina.lazy import loader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamina.store.checking import Problem as Problem
    from lamina.store.container import Container as Container
    from lamina.store.container import State as State
    from lamina.store.converting import Conversion as Conversion
    from lamina.store.converting import Converted as Converted
    from lamina.store.images import Image as Image
    from lamina.store.layers import Layer as Layer
    from lamina.store.policy import SyncPolicy as SyncPolicy
    from lamina.store.pruning import Pruned as Pruned
    from lamina.store.sharing import Deduplicated as Deduplicated
    from lamina.store.sharing import Sharing as Sharing
    from lamina.store.store import Store as Store
    from lamina.store.transfer.making import Packing as Packing
    from lamina.store.transfer.saving import Saved as Saved
    from lamina.store.usage import ContainerUsage as ContainerUsage
    from lamina.store.usage import ImageUsage as ImageUsage
    from lamina.store.usage import Usage as Usage
    from lamina.store.work import Work as Work

_HOMES = {
    "Container": "lamina.store.container",
    "ContainerUsage": "lamina.store.usage",
    "Conversion": "lamina.store.converting",
    "Converted": "lamina.store.converting",
    "Deduplicated": "lamina.store.sharing",
    "Image": "lamina.store.images",
    "ImageUsage": "lamina.store.usage",
    "Layer": "lamina.store.layers",
    "Packing": "lamina.store.transfer.making",
    "Problem": "lamina.store.checking",
    "Pruned": "lamina.store.pruning",
    "Saved": "lamina.store.transfer.saving",
    "Sharing": "lamina.store.sharing",
    "State": "lamina.store.container",
    "Store": "lamina.store.store",
    "SyncPolicy": "lamina.store.policy",
    "Usage": "lamina.store.usage",
    "Work": "lamina.store.work",
}
__all__ = [
    "Container",
    "ContainerUsage",
    "Conversion",
    "Converted",
    "Deduplicated",
    "Image",
    "ImageUsage",
    "Layer",
    "Packing",
    "Problem",
    "Pruned",
    "Saved",
    "Sharing",
    "State",
    "Store",
    "SyncPolicy",
    "Usage",
    "Work",
]

__getattr__, __dir__ = loader(__name__, _HOMES)
