"""Packages whose public names are loaded when they are first used."""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # not from typing, whose import costs more than all that lamina itself does
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def loader(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    ``homes`` says which module has a name: ``{"Image": "lamina.store.images"}``.
    """

    def load(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names
