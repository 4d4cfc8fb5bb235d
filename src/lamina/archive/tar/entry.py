"""One member of a tar archive, and the bounds that reading one keeps to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Type(Enum):
    """What an entry is. The value is its type flag (POSIX pax(1), "ustar Interchange Format")."""

    FILE = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHARACTER = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


@dataclass(slots=True)
class Entry:
    """One member of an archive, as its headers have it.

    ``name`` is neither normalised nor made safe; only a directory's trailing slashes are
    taken off. Names are bytes, in whatever encoding the archive's maker used.

    ``size`` is what a reader of the file sees. ``sparse`` is None for a plain file, else its
    data as (offset, length) pairs, ascending, apart and not empty; all else up to ``size`` is
    holes. ``stored_size`` and ``offset`` are set by the reader: how many bytes of payload the
    archive holds, and where in the stream they begin. The writer goes by ``size`` and
    ``sparse`` and looks at neither.
    """

    name: bytes
    type: Type = Type.FILE
    mode: int = 0o644
    """Permission bits, 0o7777 at most."""
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    """Nanoseconds since 1970, perhaps negative."""
    linkname: bytes = b""
    """The target of a symbolic link, or the name of the entry that a hard link is one with."""
    uname: bytes = b""
    gname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    """By full name ("user.mime_type"), names as :func:`os.listxattr` gives them."""
    sparse: tuple[tuple[int, int], ...] | None = None
    stored_size: int = 0
    pax: dict[str, bytes] = field(default_factory=dict)
    """Records of extended headers that no field above stands for (``atime``, ``comment``...)."""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of what an archive declares is believed. Beyond: InvalidArchive."""

    extended_header: int = 1 << 20
    """Bytes in all pax headers and GNU long names of one entry; and in all global headers."""
    records: int = 4096
    """Records in the pax headers of one entry."""
    global_records: int = 256
    """Records in all global headers; every entry pays for them."""
    name: int = 1 << 16
    """Bytes of a name, or of a link's target."""
    sparse_segments: int = 1 << 17
    """Pieces of data in one sparse file."""
