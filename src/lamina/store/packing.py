"""How a container is packed, in the words of those who ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from lamina.errors import OptionUnsupported, printable

if TYPE_CHECKING:
    from lamina.archive.pack import PackOptions

Xattrs: TypeAlias = Literal["portable", "all"]
"""Which extended attributes go along (:mod:`lamina.archive.xattrs`)."""


def pack_options(xattrs: Xattrs, *, sparse: bool = False) -> PackOptions:
    """Options for packing; the others are those of :class:`lamina.archive.pack.PackOptions`.

    Raises:
        OptionUnsupported: there is no such policy for extended attributes.
    """
    from lamina.archive.pack import PackOptions
    from lamina.archive.xattrs import POLICIES

    if xattrs not in POLICIES:
        known = ", ".join(POLICIES)
        raise OptionUnsupported(f"no xattrs policy '{printable(str(xattrs))}' (there is: {known})")
    return PackOptions(xattrs=POLICIES[xattrs], sparse=sparse)
