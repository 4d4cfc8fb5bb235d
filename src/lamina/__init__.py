"""Lamina keeps container file systems as stacks of layers.

    store = lamina.Store()
    image = store.import_tar("debian.tar", name="debian:12")
    with store.container(image) as box:
        box.run(["sh", "-c", "echo hello > /etc/motd"])
        image2 = box.commit("debian:hello")

Names are loaded when first used, so that importing one room of the package
(``lamina.kernel``, ``lamina.archive``) costs only that room.
"""

from __future__ import annotations

from lamina.lazy import loader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamina.api import Store as Store
    from lamina.archive.changes import Change as Change
    from lamina.archive.changes import Kind as Kind
    from lamina.errors import LaminaError as LaminaError
    from lamina.store import Container as Container
    from lamina.store import Image as Image

__version__ = "0.1.0"

_HOMES = {
    "Change": "lamina.archive.changes",
    "Container": "lamina.store",
    "Image": "lamina.store",
    "Kind": "lamina.archive.changes",
    "LaminaError": "lamina.errors",
    "Store": "lamina.api",
}
__all__ = ["Change", "Container", "Image", "Kind", "LaminaError", "Store", "__version__"]

__getattr__, __dir__ = loader(__name__, _HOMES)
