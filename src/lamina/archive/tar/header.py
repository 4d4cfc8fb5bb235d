"""One 512-byte header block: layout, numbers and checksum.

Layout and number forms are those of POSIX pax(1) ("ustar Interchange Format") and of GNU
tar ("Basic Tar Format" in its manual), read with the tolerance that GNU tar, libarchive
and Go's archive/tar share.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from struct import Struct
from zlib import adler32

from lamina.archive.tar.entry import Entry, Type
from lamina.errors import InvalidArchive

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

MAX_SIZE = 2**63 - 1
MAX_ID = 2**32 - 2
"""The id above it, -1 to chown(2), means "leave as it is"."""
MAX_SECONDS = 2**63 - 1

# name; mode, uid and gid; size; mtime; checksum; type flag; the rest, which is
# the same for most files of an archive
_READ = Struct("100s24s12s12s8sc355s")
# link name; magic, version, user, group and device; prefix; padding (star: a second magic)
_REST = Struct("100s88s155s12s")


class Format(Enum):
    """The kind of header, told by its magic."""

    V7 = "v7"
    USTAR = "ustar"
    GNU = "gnu"


_TYPES = {b"\0": Type.FILE, **{kind.value: kind for kind in Type}}
_TYPES[b"D"] = Type.DIRECTORY  # GNU dumpdir: its payload is a list of names
_FILE = Type.FILE  # looking up an Enum's member costs more than a global


def decode(block: bytes) -> tuple[bytes, Format, Entry] | None:
    """Type flag, format and entry of a header block; None for a block without a valid checksum.

    The entry's ``size`` and ``stored_size`` are both what the size field says. An unknown
    type flag gives a file, as POSIX asks. Raises InvalidArchive for a field that is none.
    """
    name, ids, size_field, mtime_field, checksum, flag, rest = _READ.unpack(block)
    if not _sum_is(block, checksum):
        return None
    form, link, uname, gname, prefix = _rest(rest)
    name = prefix + name.split(b"\0", 1)[0]
    try:
        size = _size(size_field)
        seconds = _seconds(mtime_field)
        mode, uid, gid = _ids(ids)
        kind = _TYPES.get(flag, _FILE)
        major = minor = 0
        if flag == b"3" or flag == b"4":
            major, minor = device(number(rest[172:180])), device(number(rest[180:188]))
    except InvalidArchive as error:
        raise InvalidArchive(error.why, name) from None
    entry = Entry(
        name,
        kind,
        mode,
        uid,
        gid,
        size,
        seconds * 1_000_000_000,
        link,
        uname,
        gname,
        major,
        minor,
        {},
        None,
        size,
        {},
    )
    return flag, form, entry


def number(field: bytes) -> int:
    """A numeric field: octal digits between blanks or NULs, or GNU's base-256."""
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field, "big") - (1 << (8 * len(field) - 1))
        return value - (1 << (8 * len(field) - 1)) if first & 0x40 else value
    digits = field.lstrip(b"\0 ").split(b"\0", 1)[0].rstrip(b" ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise InvalidArchive(f"not a number in the header: {ascii(field)[1:]}")
    return int(digits, 8)


def owner_id(value: int) -> int:
    """``value``, when it can be a user's or group's id."""
    if not 0 <= value <= MAX_ID:
        raise InvalidArchive(f"user or group id out of range: {value}")
    return value


def device(value: int) -> int:
    """``value``, when it can be half a device number."""
    if not 0 <= value < 2**32:
        raise InvalidArchive(f"device number out of range: {value}")
    return value


def _size(field: bytes) -> int:
    if field[11] <= 0x20 and (digits := field[:11]).isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    size = number(field)
    if not 0 <= size <= MAX_SIZE:
        raise InvalidArchive(f"size out of range: {size}")
    return size


@lru_cache(maxsize=1024)
def _seconds(field: bytes) -> int:
    seconds = number(field)
    if not -MAX_SECONDS <= seconds <= MAX_SECONDS:
        raise InvalidArchive(f"modification time out of range: {seconds}")
    return seconds


@lru_cache(maxsize=1024)
def _ids(field: bytes) -> tuple[int, int, int]:
    mode, uid, gid = number(field[:8]), number(field[8:16]), number(field[16:])
    return mode & 0o7777, owner_id(uid), owner_id(gid)


@lru_cache(maxsize=1024)
def _rest(field: bytes) -> tuple[Format, bytes, bytes, bytes, bytes]:
    """Format, link name, user, group, and what comes in front of the name."""
    link, owner, prefix, tail = _REST.unpack(field)
    link = link.split(b"\0", 1)[0]
    if owner.startswith(b"ustar\x00"):
        form = Format.USTAR
    elif owner.startswith(b"ustar "):
        form = Format.GNU
    else:
        return Format.V7, link, b"", b"", b""
    uname, gname = owner[8:40].split(b"\0", 1)[0], owner[40:72].split(b"\0", 1)[0]
    return form, link, uname, gname, _prefix(form, prefix, tail) if prefix[0] else b""


@lru_cache(maxsize=16384)
def _plain_sum(field: bytes) -> int:
    """What the bytes of a whole header sum up to whose checksum field is ``field``.

    The checksum itself counts its own eight bytes as blanks.
    """
    try:
        return number(field) - 8 * 0x20 + sum(field)
    except InvalidArchive:
        return -1


def _sum_is(block: bytes, checksum: bytes) -> bool:
    """Whether the block has the checksum that its field ``checksum`` says.

    Adler-32's lower half is one more than the sum of all bytes, at a twentieth of what sum()
    takes. It is modulo 65521, which 512 ASCII characters can't reach.
    """
    expected = _plain_sum(checksum)
    if block.isascii():
        return adler32(block) & 0xFFFF == expected + 1
    # Sun's tar summed signed characters; GNU tar takes both, so do we.
    total = sum(block)
    high = sum(byte >> 7 for byte in block) - sum(byte >> 7 for byte in checksum)
    return expected in (total, total - 256 * high)


def is_header(block: bytes) -> bool:
    """Whether the block has a valid checksum."""
    return _sum_is(block, bytes(block[148:156]))


def _prefix(form: Format, field: bytes, tail: bytes) -> bytes:
    """The directory in front of the name, with its slash."""
    if form is Format.USTAR:
        if tail.endswith(b"tar\0"):
            # star keeps access and change time in the last 24 of the 155 bytes.
            field = field[:131]
    elif form is Format.GNU:
        # GNU headers have times here, and no prefix; but Go before 1.8, and so Docker
        # before 1.13, wrote one all the same.
        if _is_time(field[:12]) or not field.split(b"\0", 1)[0].isascii():
            return b""
    else:
        return b""
    prefix = field.split(b"\0", 1)[0]
    return prefix + b"/" if prefix else b""


def _is_time(field: bytes) -> bool:
    try:
        number(field)
    except InvalidArchive:
        return False
    return True
