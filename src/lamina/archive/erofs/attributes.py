"""Extended attributes: which of an archive's a file gets, and how an inode carries them.

What of an archive is wanted is decided as when it is unpacked (:mod:`lamina.archive.attributes`).
Then the kernel has its say when an attribute is set, and here nobody sets any; :func:`settle`
says what it would have said, so that an index gives the file that unpacking would make.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from struct import Struct, unpack_from

from lamina.archive import acl
from lamina.archive.attributes import Attributes
from lamina.archive.erofs import format as f
from lamina.archive.owners import Owners, Warn
from lamina.archive.tar import Entry
from lamina.archive.whiteout import OVERLAY
from lamina.archive.xattrs import ACL_ACCESS, ACL_DEFAULT, CAPABILITY
from lamina.errors import InvalidArchive, LayerUnsupported
from lamina.kernel.idmap import IdMap

OPAQUE = "trusted.overlay.opaque"

_PREFIX_INDEXES = tuple((prefix, index) for index, prefix in f.XATTR_PREFIXES.items())
_CAPABILITY_SIZES = {2: 20, 3: 24}  # by version: include/uapi/linux/capability.h
_SHARED_ID = Struct("<I")


class Reading:
    """The attributes of an archive's entries, as files on disk have them."""

    def __init__(self, warn: Warn, owners: Owners | None = None) -> None:
        self._attributes = Attributes(Owners(IdMap()), warn, OVERLAY)
        self._mapped = None if owners is None else Attributes(owners, _say_nothing, OVERLAY)

    def of(self, entry: Entry, mode: int) -> tuple[int, dict[str, bytes]]:
        """The mode and the attributes of the file of ``mode``, an st_mode, that an entry makes.

        Raises InvalidArchive for values that no file takes, and UnmappedId for those with an id
        that the owners' map has no place for.
        """
        found: Mapping[str, bytes] = entry.xattrs
        for record, name in acl.RECORDS.items():
            text = entry.pax.get(record)
            if text and name not in found:
                try:
                    found = {**found, name: acl.parse(text.decode())}
                except ValueError as error:
                    raise InvalidArchive(f"{record}: {error}", entry.name) from error
        if not found:
            return mode, {}
        wanted = self._attributes.wanted(found, entry.name)
        if self._mapped is not None:
            self._mapped.wanted(found, entry.name)  # by the mount: here it is only asked for
        return self._settle(mode, wanted, entry.name)

    def warn_once(self, kind: str, message: str, entry: bytes) -> None:
        """As :meth:`lamina.archive.attributes.Attributes.warn_once`."""
        self._attributes.warn_once(kind, message, entry)

    def _settle(
        self, mode: int, wanted: dict[str, bytes], entry: bytes
    ) -> tuple[int, dict[str, bytes]]:
        settled = {}
        for name, value in wanted.items():
            why = _not_here(mode, name, value)
            if why is not None:
                self.warn_once(name, f"attribute {name} is left out: {why}", entry)
                continue
            if name in (ACL_ACCESS, ACL_DEFAULT) and value == acl.EMPTY:
                continue
            try:
                if name == ACL_ACCESS:
                    mode, value = acl.settle(mode, value)
                    if not value:
                        continue
                elif name == ACL_DEFAULT:
                    value = acl.canonical(value)
                elif name == CAPABILITY:
                    _check_capability(value)
            except ValueError as error:
                raise InvalidArchive(f"attribute {name} is malformed: {error}", entry) from error
            if name == ACL_DEFAULT and not stat.S_ISDIR(mode):
                raise InvalidArchive(f"attribute {name} is for directories alone", entry)
            if name in ("user.", "trusted.", "security."):
                raise InvalidArchive(f"attribute {name} is malformed: no name", entry)
            settled[name] = value
        return mode, settled


def _say_nothing(_: str) -> None:
    pass


def _not_here(mode: int, name: str, value: bytes) -> str | None:
    """Why Linux has no attribute of that name on such a file; None: it has."""
    if name.startswith("user.") and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "only files and directories have those"
    if name in (ACL_ACCESS, ACL_DEFAULT) and stat.S_ISLNK(mode):
        return "a symbolic link has no ACL"
    if name in (ACL_ACCESS, ACL_DEFAULT) and len(value) >= 4 and not value.startswith(acl.EMPTY):
        return "an ACL of an unknown version"
    return None


def _check_capability(value: bytes) -> None:
    """As cap_convert_nscap() in the kernel's security/commoncap.c."""
    version = unpack_from("<I", value)[0] >> 24 if len(value) >= 4 else 0
    if _CAPABILITY_SIZES.get(version) != len(value):
        raise ValueError("no file capability")


def content_attributes(xattrs: Mapping[str, bytes] | None) -> dict[str, bytes]:
    """Those of a layer's file that are no marks of overlayfs, to be given to another file."""
    return {k: v for k, v in (xattrs or {}).items() if not OVERLAY.private_xattr(k)}


def without_default(xattrs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those of a directory that a later entry for it leaves: all but its default ACL."""
    return {name: value for name, value in xattrs.items() if name != ACL_DEFAULT}


def encode(xattrs: Mapping[str, bytes], shared: Shared) -> tuple[int, bytes]:
    """An inode's attribute count and the bytes behind it.

    Raises LayerUnsupported for what the format has no place for.
    """
    entries = [_entry(name, xattrs[name]) for name in sorted(xattrs)]
    inline = [entry for entry in entries if len(entry) <= f.XATTR_INLINE_MAX // 4]
    moved = [entry for entry in entries if len(entry) > f.XATTR_INLINE_MAX // 4]
    inline.sort(key=len)
    while sum(map(len, inline)) > f.XATTR_INLINE_MAX:
        moved.append(inline.pop())
    if len(moved) > f.XATTR_SHARED_MAX:
        raise LayerUnsupported("erofs", "a file with more extended attributes than fit an inode")
    body = b"".join(
        (
            f.XATTR_HEADER.pack(0, len(moved)),
            *(_SHARED_ID.pack(shared.add(entry)) for entry in moved),
            *inline,
        )
    )
    return 1 + (len(body) - f.XATTR_HEADER.size) // 4, body


def _entry(name: str, value: bytes) -> bytes:
    if len(value) > f.XATTR_VALUE_MAX:
        raise LayerUnsupported("erofs", f"extended attribute {name} of {len(value)} bytes")
    for prefix, index in _PREFIX_INDEXES:
        if name.startswith(prefix):
            rest = os.fsencode(name[len(prefix) :])
            raw = f.XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
            return raw + bytes(-len(raw) % 4)
    raise LayerUnsupported("erofs", f"extended attribute {name}, which EROFS has no number for")


class Shared:
    """Attributes that lie in an area of their own, each once."""

    def __init__(self) -> None:
        self.area = bytearray(4)  # so that no attribute has the number 0
        self._known: dict[bytes, int] = {}

    def add(self, entry: bytes) -> int:
        """The number of an attribute: its position in the area, in units of 4 bytes."""
        number = self._known.get(entry)
        if number is None:
            number = self._known[entry] = len(self.area) // 4
            self.area += entry
        return number
