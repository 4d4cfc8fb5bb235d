"""Drivers by name, and the choice of one for this machine and user."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

from lamina.drivers.base import Driver
from lamina.errors import DriverUnsupported, InvalidName, printable
from lamina.kernel.idmap import IdMap

_KNOWN: dict[str, str] = {
    "erofs": "lamina.drivers.erofs:ErofsDriver",
    "overlay": "lamina.drivers.overlay:OverlayDriver",
    "aufs": "lamina.drivers.aufs:AufsDriver",
    "vfs": "lamina.drivers.vfs:VfsDriver",
}
"""Best first: the order in which :func:`choose` asks. A module is imported when it is asked for."""


class Availability(NamedTuple):
    """Whether a driver works here."""

    name: str
    reason: str | None
    """Why it does not; None when it does."""


def register(name: str, target: str, *, before: str | None = None) -> None:
    """Make a driver known as ``name``; ``target`` is ``module:class``.

    ``before`` places it in the order of preference, by default at the end.
    """
    others = [(k, v) for k, v in _KNOWN.items() if k != name]
    place = next((i for i, (k, _) in enumerate(others) if k == before), len(others))
    others.insert(place, (name, target))
    _KNOWN.clear()
    _KNOWN.update(others)


def names() -> list[str]:
    """The known drivers, best first."""
    return list(_KNOWN)


def check_name(name: str) -> None:
    """Raise :class:`InvalidName` unless there is a driver of this name."""
    if name not in _KNOWN:
        has = ", ".join(_KNOWN)
        raise InvalidName(f"no driver is called '{printable(name)}' (there are: {has})")


def driver_class(name: str) -> type[Driver]:
    """The class of a driver.

    Raises:
        InvalidName: there is none of that name.
    """
    check_name(name)
    module, _, attribute = _KNOWN[name].partition(":")
    found: type[Driver] = getattr(importlib.import_module(module), attribute)
    return found


def availability(root: Path) -> list[Availability]:
    """Each known driver, and whether it works for a store in ``root``."""
    return [Availability(name, _reason(name, root / name)) for name in _KNOWN]


def choose(root: Path) -> str:
    """The driver for a store in ``root``: the one that it was begun with, else the best that works.

    Raises:
        DriverUnsupported: none works, or the one that the store was begun with does not.
    """
    for name in _KNOWN:
        if (root / name / "layers").is_dir():
            return name
    return _best({name: root / name for name in _KNOWN}, IdMap())


def choose_for(home: Path, idmap: IdMap = IdMap()) -> str:
    """The best driver that can keep its layers in ``home`` itself, with owners of ``idmap``.

    Raises:
        DriverUnsupported: none can.
    """
    return _best(dict.fromkeys(_KNOWN, home), idmap)


def _best(homes: dict[str, Path], idmap: IdMap) -> str:
    reasons = []
    for name, home in homes.items():
        reason = _reason(name, home, idmap)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise DriverUnsupported("auto", "; ".join(reasons))


def _reason(name: str, home: Path, idmap: IdMap = IdMap()) -> str | None:
    try:
        driver_class(name).probe(home, idmap=idmap)
    except DriverUnsupported as error:
        return error.reason
    return None
