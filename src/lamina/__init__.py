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

import importlib

TYPE_CHECKING = False  # not from typing, whose import costs more than all of this package's own
if TYPE_CHECKING:
    from typing import Any

    from lamina.api import Store as Store
    from lamina.archive.changes import Change as Change
    from lamina.archive.changes import Kind as Kind
    from lamina.errors import LaminaError as LaminaError
    from lamina.store import Container as Container
    from lamina.store import Image as Image

__version__ = "0.1.0"

_HOME = {
    "Change": "lamina.archive.changes",
    "Container": "lamina.store",
    "Image": "lamina.store",
    "Kind": "lamina.archive.changes",
    "LaminaError": "lamina.errors",
    "Store": "lamina.api",
}
__all__ = ["Change", "Container", "Image", "Kind", "LaminaError", "Store", "__version__"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'lamina' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
