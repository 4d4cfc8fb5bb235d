"""How a container is packed, in the words of those who ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from lamina.errors import OptionUnsupported, printable

if TYPE_CHECKING:
    from lamina.archive.pack import PackOptions

Xattrs: TypeAlias = Literal["portable", "all"]
"""Which extended attributes go along (:mod:`lamina.archive.xattrs`)."""


def pack_options(
    xattrs: Xattrs = "portable",
    *,
    sparse: bool = False,
    clamp_mtime: int | None = None,
    compare_contents: bool = False,
) -> PackOptions:
    """Options for packing; ``clamp_mtime`` is in seconds since 1970, the latest time of any entry.

    Raises:
        OptionUnsupported: there is no such policy for extended attributes.
    """
    from lamina.archive.pack import PackOptions
    from lamina.archive.xattrs import POLICIES

    if xattrs not in POLICIES:
        known = ", ".join(POLICIES)
        raise OptionUnsupported(f"no xattrs policy '{printable(str(xattrs))}' (there is: {known})")
    latest = None if clamp_mtime is None else clamp_mtime * 1_000_000_000
    return PackOptions(
        xattrs=POLICIES[xattrs],
        sparse=sparse,
        clamp_mtime_ns=latest,
        compare_contents=compare_contents,
    )
