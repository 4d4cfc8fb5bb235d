"""Which faults follow from which: one missing layer is the fault of all that stands on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lamina.oci.docker import Fault


@dataclass(frozen=True, slots=True)
class Root:
    """A fault that follows from none of the others, and how many follow from it."""

    fault: Fault
    others: int = 0


def roots(faults: Iterable[Fault]) -> list[Root]:
    """The faults that the others follow from, in their order.

    Where what is wrong is not among them (a layer without any trace), the first of those that
    follow from it stands for it.
    """
    every = list(dict.fromkeys(faults))
    causes = {_key(fault.id): _key(fault.cause) for fault in every if fault.cause}
    own = {_key(fault.id): fault for fault in reversed(every) if not fault.cause}
    found: dict[str | Fault, Fault] = {}
    followers: dict[str | Fault, int] = {}
    for fault in every:
        if not fault.cause:
            found[fault] = fault
            continue
        key = _last(_key(fault.cause), causes)
        group: str | Fault = own.get(key, key)
        if found.setdefault(group, own.get(key, fault)) is not fault:
            followers[group] = followers.get(group, 0) + 1
    return [Root(fault, followers.get(group, 0)) for group, fault in found.items()]


def _last(key: str, causes: dict[str, str]) -> str:
    seen = {key}
    while key in causes and causes[key] not in seen:
        key = causes[key]
        seen.add(key)
    return key


def _key(id: str) -> str:
    return id.removeprefix("sha256:")
