"""The mount table: /proc/PID/mountinfo, and statmount(2) and listmount(2) from Linux 6.8 on.

The kernel writes space, tab, newline and backslash in paths as octal escapes; here all are
bytes with the escapes undone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from lamina.kernel import _syscall
from lamina.kernel._syscall import (
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    AnyPath,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_void_p,
    check,
    encode,
)

_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_ATTR_MOUNT_ROOT = 0x2000
_AT_NO_AUTOMOUNT = 0x800
_STATX = struct.Struct("=IIQ40xQ80xQ104x")  # mask, blksize, attributes; attributes_mask; mnt_id

_STATMOUNT_MNT_OPTS = 0x80
_STATMOUNT_FS_SUBTYPE = 0x100
_STATMOUNT_SB_SOURCE = 0x200
_STATMOUNT_WANTED = (
    0x01 | 0x02 | 0x04  # sb_basic, mnt_basic, propagate_from
    | 0x08 | 0x10 | 0x20  # mnt_root, mnt_point, fs_type
    | _STATMOUNT_MNT_OPTS | _STATMOUNT_FS_SUBTYPE | _STATMOUNT_SB_SOURCE
)  # fmt: skip
_LISTMOUNT_BATCH = 512
_REQUEST = struct.Struct("=IIQQ")  # size, spare, mnt_id, param
# size, options, mask, major, minor, magic, sb_flags, fs_type, id, parent, old id, old parent,
# attr, propagation, peer group, master, propagate_from, root, target, ns id, subtype, source
_STATMOUNT = struct.Struct("=IIQIIQIIQQIIQQQQQIIQII")
_STRINGS_AT = 512

_statx = _syscall.function("statx", None, c_int, c_char_p, c_int, c_uint, c_void_p)
_statmount = _syscall.function(
    "statmount", _syscall.NR_STATMOUNT, c_void_p, c_void_p, c_size_t, c_uint
)
_listmount = _syscall.function(
    "listmount", _syscall.NR_LISTMOUNT, c_void_p, c_void_p, c_size_t, c_uint
)

_ATTR_WORDS = (
    (0x02, b"nosuid"),
    (0x04, b"nodev"),
    (0x08, b"noexec"),
    (0x10, b"noatime"),
    (0x80, b"nodiratime"),
    (0x200000, b"nosymfollow"),
)
_ATTR_ATIME = 0x70  # all bits clear is relatime
_SB_WORDS = ((0x10, b"sync"), (0x80, b"dirsync"), (1 << 25, b"lazytime"))
_MS_UNBINDABLE = 1 << 17


class MountPoint(NamedTuple):
    """One line of proc_pid_mountinfo(5).

    ``root`` is the directory of the file system that is seen at ``target``. ``options`` are
    the mount's, ``super_options`` the file system's, comma-separated as the kernel has them
    (escapes in ``super_options`` are left, for there they quote commas).
    """

    id: int
    parent_id: int
    major: int
    minor: int
    root: bytes
    target: bytes
    options: bytes
    optional: tuple[bytes, ...]
    fstype: bytes
    source: bytes
    super_options: bytes

    @property
    def read_only(self) -> bool:
        """Whether the mount or its file system is read-only."""
        return b"ro" in self.options.split(b",") or b"ro" in self.super_options.split(b",")


def unescape(text: bytes) -> bytes:
    """``text`` with the kernel's ``\\ooo`` escapes undone."""
    head, *rest = text.split(b"\\")
    if not rest:
        return head
    return head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)


def parse(data: bytes) -> list[MountPoint]:
    """The lines of a mountinfo file, in its order: of mounts on one target the top one last."""
    return [_parse_line(line) for line in data.split(b"\n") if line]


def _parse_line(line: bytes) -> MountPoint:
    fields = line.split(b" ")
    dash = fields.index(b"-", 6)
    major, _, minor = fields[2].partition(b":")
    return MountPoint(
        id=int(fields[0]),
        parent_id=int(fields[1]),
        major=int(major),
        minor=int(minor),
        root=unescape(fields[3]),
        target=unescape(fields[4]),
        options=fields[5],
        optional=tuple(fields[6:dash]),
        fstype=unescape(fields[dash + 1]),
        source=unescape(fields[dash + 2]),
        super_options=fields[dash + 3],
    )


def mounts(pid: int | str = "self") -> list[MountPoint]:
    """All mounts that the process ``pid`` can see."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return parse(file.read())


def mounts_below(path: AnyPath) -> list[MountPoint]:
    """The mounts strictly below ``path`` (which is resolved), parents before children."""
    real = os.path.realpath(os.fsencode(path))
    prefix = real.rstrip(b"/") + b"/"
    listed = _listed_below(real)
    table = mounts() if listed is None else listed
    return [point for point in table if point.target.startswith(prefix) and point.target != b"/"]


def is_mountpoint(path: AnyPath) -> bool:
    """Whether something is mounted at ``path``; a last symlink is not followed.

    False when there is no such path. Bind mounts count, also of a file.
    """
    try:
        attributes, known, _ = _statx_mount(path)
    except FileNotFoundError:
        return False
    except OSError:
        attributes = known = 0
    if known & _STATX_ATTR_MOUNT_ROOT:
        return bool(attributes & _STATX_ATTR_MOUNT_ROOT)
    return _topmost(mounts(), _own_name(path)) is not None


def in_chroot() -> bool:
    """Whether this process's root directory is no mount point: chroot(2) made it the root."""
    return not is_mountpoint("/")


def mount_at(path: AnyPath) -> MountPoint | None:
    """The topmost mount at ``path`` itself, or None; a last symlink is not followed."""
    if not is_mountpoint(path):
        return None
    name = _own_name(path)
    unique = _unique_id(path)
    found = None if unique is None else _stat_mount(unique)
    if found is not None and found.target == name:
        return found
    return _topmost(mounts(), name)


def _own_name(path: AnyPath) -> bytes:
    """The absolute name of ``path`` with symlinks resolved in all but its last part."""
    head, tail = os.path.split(os.path.abspath(os.fsencode(path)))
    return os.path.join(os.path.realpath(head), tail)


def _topmost(table: list[MountPoint], name: bytes) -> MountPoint | None:
    found = None
    for point in table:
        if point.target == name:
            found = point
    return found


# statx(2), statmount(2), listmount(2)


def _statx_mount(path: AnyPath) -> tuple[int, int, int | None]:
    """(attributes, which of them are known, unique mount id or None) of ``path``."""
    buffer = ctypes.create_string_buffer(256)
    flags = AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
    check(_statx(AT_FDCWD, encode(path), flags, _STATX_MNT_ID_UNIQUE, buffer), path)
    mask, _, attributes, known, mount_id = _STATX.unpack(buffer)
    return attributes, known, mount_id if mask & _STATX_MNT_ID_UNIQUE else None


def _unique_id(path: AnyPath) -> int | None:
    try:
        return _statx_mount(path)[2]
    except OSError:
        return None


def _stat_mount(unique_id: int) -> MountPoint | None:
    """statmount(2) of a unique mount id; None where it is gone or the kernel can't say all."""
    request = _REQUEST.pack(_REQUEST.size, 0, unique_id, _STATMOUNT_WANTED)
    size = 4096
    while True:
        buffer = ctypes.create_string_buffer(size)
        if _statmount(request, buffer, size, 0) >= 0:
            return _parse_statmount(buffer.raw)
        if ctypes.get_errno() != errno.EOVERFLOW:
            return None
        size *= 4


def _parse_statmount(raw: bytes) -> MountPoint | None:
    # fmt: off
    (_, options, mask, major, minor, _, sb_flags, fstype, _, _, mount_id, parent_id, attr,
     propagation, peers, master, source_peers, root, target, _, subtype, source,
     ) = _STATMOUNT.unpack_from(raw)
    # fmt: on
    if not mask & _STATMOUNT_SB_SOURCE:  # before Linux 6.13
        return None

    def text(offset: int) -> bytes:
        start = _STRINGS_AT + offset
        return raw[start : raw.index(b"\0", start)]

    words = [b"ro" if attr & 1 else b"rw"]
    words += [word for bit, word in _ATTR_WORDS if attr & bit]
    if not attr & _ATTR_ATIME:
        words.append(b"relatime")
    super_words = [b"ro" if sb_flags & 1 else b"rw"]
    super_words += [word for bit, word in _SB_WORDS if sb_flags & bit]
    if mask & _STATMOUNT_MNT_OPTS and text(options):
        super_words.append(text(options))
    optional = [
        word % group
        for word, group in (
            (b"shared:%d", peers),
            (b"master:%d", master),
            (b"propagate_from:%d", source_peers),
        )
        if group
    ]
    if propagation & _MS_UNBINDABLE:
        optional.append(b"unbindable")
    return MountPoint(
        id=mount_id,
        parent_id=parent_id,
        major=major,
        minor=minor,
        root=text(root),
        target=text(target),
        options=b",".join(words),
        optional=tuple(optional),
        fstype=text(fstype) + (b"." + text(subtype) if mask & _STATMOUNT_FS_SUBTYPE else b""),
        source=text(source),
        super_options=b",".join(super_words),
    )


def _listed_below(path: bytes) -> list[MountPoint] | None:
    """The mounts below the mount that ``path`` is on, by listmount(2); None where it is not.

    A mount with nothing mounted on it costs two calls, however long the table is.
    """
    unique = _unique_id(path)
    if unique is None:
        return None
    table: list[MountPoint] = []
    ids = (ctypes.c_uint64 * _LISTMOUNT_BATCH)()
    last = 0
    while True:
        request = _REQUEST.pack(_REQUEST.size, 0, unique, last)
        count = _listmount(request, ids, _LISTMOUNT_BATCH, 0)
        if count < 0:
            return None
        for last in ids[:count]:
            point = _stat_mount(last)
            if point is None:
                return None
            table.append(point)
        if count < _LISTMOUNT_BATCH:
            return table
