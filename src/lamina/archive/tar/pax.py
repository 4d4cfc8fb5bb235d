"""Extended headers: ``length key=value`` records (POSIX pax(1), "pax Extended Header").

Which records mean what: POSIX, star's and GNU tar's manual, libarchive's tar(5).
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import fsdecode, fsencode
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from lamina.archive.tar.entry import Entry, Limits, Type
from lamina.archive.tar.header import MAX_SECONDS, MAX_SIZE, device, owner_id
from lamina.errors import InvalidArchive, printable

SCHILY_XATTR = "SCHILY.xattr."
LIBARCHIVE_XATTR = "LIBARCHIVE.xattr."
SPARSE = "GNU.sparse."

_DIGITS = 19  # of 2**63


@dataclass(slots=True)
class Extension:
    """What the headers in front of an entry say about it.

    ``values`` are pax records by keyword, the last one counting; a keyword that may be
    repeated, as in GNU's sparse format 0.0, is in ``map_0_0`` as offsets and lengths by turns.
    ``name`` and ``linkname`` are GNU's long ones. ``size`` counts the bytes of it all.
    """

    values: dict[str, bytes] = field(default_factory=dict)
    map_0_0: list[int] = field(default_factory=list)
    name: bytes = b""
    linkname: bytes = b""
    size: int = 0


def parse(body: bytes, extension: Extension, limits: Limits) -> None:
    """Add the records in ``body``, an extended header's payload, to ``extension``.

    Raises InvalidArchive for a record that is none, and for too many.
    """
    values = extension.values
    position, end = 0, len(body)
    while position < end:
        blank = body.find(b" ", position, position + _DIGITS + 1)
        digits = body[position:blank]
        if blank < 0 or not digits.isdigit():
            _malformed(body, position)
        stop = position + int(digits)
        equals = body.find(b"=", blank, stop - 1)
        if not blank < stop <= end or equals <= blank + 1 or body[stop - 1] != 0x0A:
            _malformed(body, position)
        key = body[blank + 1 : equals].decode("utf-8", "surrogateescape")
        if "\0" in key:
            _malformed(body, position)
        value = body[equals + 1 : stop - 1]
        if key in _MAP_0_0:
            _add_to_map(extension.map_0_0, key, value, limits)
        else:
            values[key] = value
            if len(values) > limits.records:
                raise InvalidArchive(f"more than {limits.records} pax records")
        position = stop


def _malformed(body: bytes, position: int) -> NoReturn:
    raise InvalidArchive(f"malformed pax record {ascii(body[position : position + 40])[1:]}")


_MAP_0_0 = ("GNU.sparse.offset", "GNU.sparse.numbytes")


def _add_to_map(pairs: list[int], key: str, value: bytes, limits: Limits) -> None:
    if key != _MAP_0_0[len(pairs) % 2]:
        raise InvalidArchive(f"{key} out of order")
    if len(pairs) >= 2 * limits.sparse_segments:
        raise InvalidArchive("too many pieces in a sparse file")
    pairs.append(decimal(value))


def decimal(value: bytes) -> int:
    """A size: digits alone, below 2**63."""
    if len(value) <= _DIGITS and value.isdigit() and (number := int(value)) <= MAX_SIZE:
        return number
    raise InvalidArchive(f"not a size: {ascii(value[:40])[1:]}")


def nanoseconds(value: bytes) -> int:
    """A time: seconds, perhaps with a fraction, perhaps negative; rounded down, as GNU tar does."""
    digits = value.removeprefix(b"-")
    seconds, _, fraction = digits.partition(b".")
    if not seconds.isdigit() or len(seconds) > _DIGITS or not (fraction + b"0").isdigit():
        raise InvalidArchive(f"not a time: {ascii(value[:40])[1:]}")
    if int(seconds) > MAX_SECONDS:
        raise InvalidArchive(f"time out of range: {seconds.decode()}")
    time = int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    if digits is value:
        return time
    return -time - bool(fraction[9:].strip(b"0"))


def apply(values: Mapping[str, bytes], entry: Entry, limits: Limits) -> None:
    """Let the records override the entry's fields; those that no field stands for go to ``pax``.

    ``size`` sets ``stored_size`` too. Records of sparse maps are left to the caller.
    """
    for key, value in values.items():
        setter = _SETTERS.get(key)
        if setter is not None:
            # An empty value takes back what a global header said (POSIX).
            if value:
                setter(entry, value)
        elif key.startswith((SCHILY_XATTR, LIBARCHIVE_XATTR)):
            name, content = _xattr(key, value)
            if key.startswith(SCHILY_XATTR) or name not in entry.xattrs:
                entry.xattrs[name] = content
        elif not key.startswith(SPARSE):
            entry.pax[key] = value
    if max(len(entry.name), len(entry.linkname)) > limits.name:
        raise InvalidArchive(f"a name longer than {limits.name} bytes")


def text(value: bytes) -> bytes:
    """A name: anything but NUL."""
    if b"\0" in value:
        raise InvalidArchive("NUL in a name")
    return value


def _set_path(entry: Entry, value: bytes) -> None:
    entry.name = text(value)


def _set_linkpath(entry: Entry, value: bytes) -> None:
    entry.linkname = text(value)


def _set_size(entry: Entry, value: bytes) -> None:
    entry.size = entry.stored_size = decimal(value)


def _set_uid(entry: Entry, value: bytes) -> None:
    entry.uid = owner_id(decimal(value))


def _set_gid(entry: Entry, value: bytes) -> None:
    entry.gid = owner_id(decimal(value))


def _set_uname(entry: Entry, value: bytes) -> None:
    entry.uname = text(value)


def _set_gname(entry: Entry, value: bytes) -> None:
    entry.gname = text(value)


def _set_mtime(entry: Entry, value: bytes) -> None:
    entry.mtime_ns = nanoseconds(value)


def _set_major(entry: Entry, value: bytes) -> None:
    if entry.type in (Type.CHARACTER, Type.BLOCK):
        entry.devmajor = device(decimal(value))


def _set_minor(entry: Entry, value: bytes) -> None:
    if entry.type in (Type.CHARACTER, Type.BLOCK):
        entry.devminor = device(decimal(value))


def _set_selinux(entry: Entry, value: bytes) -> None:
    entry.xattrs.setdefault("security.selinux", value)


def _no_charset(entry: Entry, value: bytes) -> None:
    """Names are bytes here, in whatever character set."""


_SETTERS = {
    "hdrcharset": _no_charset,
    "path": _set_path,
    "linkpath": _set_linkpath,
    "size": _set_size,
    "uid": _set_uid,
    "gid": _set_gid,
    "uname": _set_uname,
    "gname": _set_gname,
    "mtime": _set_mtime,
    "SCHILY.devmajor": _set_major,
    "SCHILY.devminor": _set_minor,
    "RHT.security.selinux": _set_selinux,
}


def _xattr(key: str, value: bytes) -> tuple[str, bytes]:
    """Name and value of an extended attribute's record."""
    if key.startswith(SCHILY_XATTR):
        # GNU tar escapes these two, as "=" ends a keyword.
        name = key[len(SCHILY_XATTR) :].replace("%3D", "=").replace("%25", "%")
    else:
        # libarchive's tar(5): the name URL-encoded, the value base64 without padding.
        name = fsdecode(unquote_to_bytes(fsencode(key[len(LIBARCHIVE_XATTR) :])))
        try:
            value = b64decode(value + b"=" * (-len(value) % 4), validate=True)
        except binascii.Error:
            raise InvalidArchive(f"malformed base64 in {printable(key)}") from None
    if not name or "\0" in name:
        raise InvalidArchive(f"not the name of an extended attribute: {printable(name)}")
    return name, value


def is_free(keywords: Iterable[str]) -> bool:
    """Whether none of the keywords stands for a field of :class:`Entry`."""
    return not any(
        key in _SETTERS or key.startswith((SCHILY_XATTR, LIBARCHIVE_XATTR, SPARSE))
        for key in keywords
    )


def encode_xattr_name(name: str) -> str:
    """The keyword of the record that carries the extended attribute ``name``."""
    return SCHILY_XATTR + name.replace("%", "%25").replace("=", "%3D")


def encode(values: Mapping[str, bytes]) -> bytes:
    """An extended header's body: one record for each keyword, in order of the keywords.

    But ``hdrcharset`` comes first, as it tells of those that follow. Raises ValueError for a
    keyword that can't be one.
    """
    keys = sorted(values, key=lambda key: (key != "hdrcharset", key))
    return b"".join(_record(key, values[key]) for key in keys)


def _record(key: str, value: bytes) -> bytes:
    if not key or "=" in key or "\0" in key:
        raise ValueError(f"not a pax keyword: {key!r}")
    rest = b" %b=%b\n" % (fsencode(key), value)
    # The length counts its own digits.
    length = len(rest) + len(str(len(rest)))
    if length < len(rest) + len(str(length)):
        length += 1
    return b"%d%b" % (length, rest)
