"""POSIX access control lists: the text of tar archives, the bytes of extended attributes.

GNU tar, star and bsdtar store an ACL as the text of acl(5) in the pax records
``SCHILY.acl.access`` and ``SCHILY.acl.default``; Linux takes it as the attributes
``system.posix_acl_access`` and ``..._default`` (include/uapi/linux/posix_acl_xattr.h).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

RECORDS: Final = {
    "SCHILY.acl.access": "system.posix_acl_access",
    "SCHILY.acl.default": "system.posix_acl_default",
}
"""Pax record, and the attribute that it stands for."""

EMPTY: Final = struct.pack("<I", 2)
"""An ACL without entries, which to set is to remove the ACL; all begin so, with their version."""

_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_UNDEFINED = 0xFFFF_FFFF
_OWNER, _USER, _OWNING_GROUP, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS = {  # (name, has a qualifier): tag
    ("user", False): _OWNER,
    ("user", True): _USER,
    ("group", False): _OWNING_GROUP,
    ("group", True): _GROUP,
    ("mask", False): _MASK,
    ("other", False): _OTHER,
}
_SHORT = {"u": "user", "g": "group", "m": "mask", "o": "other"}
_BITS = {"r": 4, "w": 2, "x": 1, "-": 0}

MapId = Callable[[int], int]


def parse(text: str) -> bytes:
    """The attribute for an ACL in text form; ValueError if it is none.

    A name is taken with the number that stands after it (``user:alice:rw-:1000``), as star and
    GNU tar write it; a qualifier may be a number alone. A name alone can't be resolved: names in
    an archive are those of another machine.
    """
    entries = []
    for line in text.replace("\n", ",").split(","):
        line = line.partition("#")[0].strip()
        if line:
            entries.append(_entry(line))
    if not entries:
        raise ValueError("an ACL without entries")
    return EMPTY + b"".join(_ENTRY.pack(*entry) for entry in sorted(entries, key=_order))


def mapped(value: bytes, user: MapId, group: MapId) -> bytes:
    """An attribute with its user and group ids mapped; ValueError when it is malformed."""
    result = bytearray(EMPTY)
    for tag, bits, number in _entries(value):
        if tag == _USER:
            number = user(number)
        elif tag == _GROUP:
            number = group(number)
        result += _ENTRY.pack(tag, bits, number)
    return bytes(result)


def canonical(value: bytes) -> bytes:
    """An attribute as the kernel gives it back: ids where they count. ValueError for none."""
    check(value)
    named = (_USER, _GROUP)
    packed = [_ENTRY.pack(t, b, n if t in named else _UNDEFINED) for t, b, n in _entries(value)]
    return EMPTY + b"".join(packed)


def check(value: bytes) -> None:
    """Raise ValueError for what the kernel takes for no ACL (posix_acl_valid() in fs/posix_acl.c).

    One entry each for owner, group and others; users and groups each once, ascending; and a mask
    where there are any.
    """
    entries = list(_entries(value))
    tags = [tag for tag, _, _ in entries]
    needed = [_OWNER, _OWNING_GROUP, _OTHER]
    if _USER in tags or _GROUP in tags:
        needed.append(_MASK)
    if tags != sorted(tags) or any(tags.count(tag) != 1 for tag in needed) or tags.count(_MASK) > 1:
        raise ValueError("not a POSIX ACL")
    if not set(tags) <= set(_TAGS.values()) or any(bits & ~7 for _, bits, _ in entries):
        raise ValueError("not a POSIX ACL")
    for kind in (_USER, _GROUP):
        if _UNDEFINED in (number for tag, _, number in entries if tag == kind):
            raise ValueError("an ACL without the id of a user or group")


def settle(mode: int, value: bytes) -> tuple[int, bytes]:
    """What a file of ``mode`` has after its access ACL was set: its mode, and the attribute.

    The mode's permissions become the ACL's, the mask's being the group's; an ACL that says no more
    than a mode can say is not kept (posix_acl_update_mode() in fs/posix_acl.c): ``b""``. Raises
    ValueError as :func:`check`.
    """
    check(value)
    rights = {tag: bits for tag, bits, _ in _entries(value)}
    group = rights.get(_MASK, rights[_OWNING_GROUP])
    mode = mode & ~0o777 | rights[_OWNER] << 6 | group << 3 | rights[_OTHER]
    if rights.keys() <= {_OWNER, _OWNING_GROUP, _OTHER}:
        return mode, b""
    return mode, canonical(value)


def text(value: bytes) -> str:
    """An attribute in text form, users and groups by number; ValueError when it is malformed."""
    names = {tag: name for (name, _), tag in _TAGS.items()}
    lines = []
    for tag, bits, number in _entries(value):
        if tag not in names:
            raise ValueError("not a POSIX ACL")
        who = str(number) if tag in (_USER, _GROUP) else ""
        rights = "".join(letter if bits & bit else "-" for letter, bit in _BITS.items() if bit)
        lines.append(f"{names[tag]}:{who}:{rights}")
    return ",".join(lines)


def _entries(value: bytes) -> Iterator[tuple[int, int, int]]:
    if not value.startswith(EMPTY) or len(value) % _ENTRY.size != len(EMPTY):
        raise ValueError("not a POSIX ACL")
    return _ENTRY.iter_unpack(value[len(EMPTY) :])


def _entry(line: str) -> tuple[int, int, int]:
    fields = [field.strip() for field in line.split(":")]
    if len(fields) < 2:
        raise ValueError(f"'{line}' is no ACL entry")
    kind = _SHORT.get(fields[0], fields[0])
    if kind in ("mask", "other") and len(fields) == 2:
        fields.insert(1, "")
    if len(fields) not in (3, 4):
        raise ValueError(f"'{line}' is no ACL entry")
    qualifier = fields[3] if len(fields) == 4 else fields[1]
    tag = _TAGS.get((kind, bool(qualifier)))
    if tag is None or not set(fields[2]) <= _BITS.keys():
        raise ValueError(f"'{line}' is no ACL entry")
    if qualifier and not (
        qualifier.isascii() and qualifier.isdigit() and int(qualifier) < _UNDEFINED
    ):
        raise ValueError(f"'{line}' has a name and no number")
    bits = 0
    for letter in fields[2]:
        bits |= _BITS[letter]
    return tag, bits, int(qualifier) if qualifier else _UNDEFINED


def _order(entry: tuple[int, int, int]) -> tuple[int, int]:
    # The kernel wants the entries by tag; by id among users and groups is how libacl has them.
    return entry[0], entry[2]
