"""A tree with everything a tar can hold, and what is to be known of a tree or an archive."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lamina.archive.tar import Entry, TarReader, TarWriter, Type
from lamina.kernel.copy import data_ranges
from tests import support

SECOND = 10**9
TIME = 1_600_000_000 * SECOND

_TYPES = {
    stat.S_IFREG: Type.FILE,
    stat.S_IFDIR: Type.DIRECTORY,
    stat.S_IFLNK: Type.SYMLINK,
    stat.S_IFCHR: Type.CHARACTER,
    stat.S_IFBLK: Type.BLOCK,
    stat.S_IFIFO: Type.FIFO,
}


class Fact(NamedTuple):
    """What two trees must have in common at a name. A hard link's are those of its file."""

    type: Type
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: bytes
    device: tuple[int, int]
    size: int
    content: str
    xattrs: dict[str, bytes]


class Look(NamedTuple):
    """What is not looked at, for formats that don't have it."""

    fractions: bool = True
    xattrs: bool = True


def make(root: Path, *, plain: bool = False, names: bool = True, old: int = 0) -> None:
    """Fill ``root``.

    ``plain`` is what v7 and ustar can hold; ``names`` adds bytes not UTF-8; ``old`` is the
    time of one file.
    """
    base = os.fsencode(root)

    def put(name: bytes, data: bytes = b"", mode: int = 0o644) -> bytes:
        path = os.path.join(base, name)
        with open(path, "wb") as stream:
            stream.write(data)
        os.chmod(path, mode)
        return path

    os.mkdir(os.path.join(base, b"dir"), 0o750)
    os.mkdir(os.path.join(base, b"empty dir"))
    put(b"empty")
    put(b"dir/small", b"small\n", 0o600)
    put(b"dir/block", b"b" * 512)
    put(b"dir/large", os.urandom(3 << 20))
    put(b"dir/\tnew\nline ", b"x")
    os.link(os.path.join(base, b"dir/small"), os.path.join(base, b"linked"))
    os.symlink(b"dir/small", os.path.join(base, b"symlink"))
    os.mkfifo(os.path.join(base, b"fifo"), 0o620)
    if support.is_root():
        os.mknod(os.path.join(base, b"null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(os.path.join(base, b"loop"), stat.S_IFBLK | 0o660, os.makedev(7, 200))
        os.chown(os.path.join(base, b"empty"), 1000, 200_000)
        os.chown(put(b"setuid", b"#!", 0o755), 12, 34)
        os.chmod(os.path.join(base, b"setuid"), 0o6755)
    os.chmod(os.path.join(base, b"empty dir"), 0o1777)
    if names:
        put(b"latin-\xe9\xff", b"bytes")
        os.symlink(b"\xff\xfe", os.path.join(base, b"odd-link"))
    if not plain:
        put(b"n" * 255, b"255")
        if names:
            put(b"\xff\xe9" * 100, b"long and not UTF-8")
        put(b"dir/" + b"m" * 252, b"256 with its directory")
        deep = base
        for letter in b"abcdef":
            deep = os.path.join(deep, bytes([letter]) * 240)
            os.mkdir(deep)
        with open(os.path.join(deep, b"deep"), "wb") as stream:
            stream.write(b"deep")
        os.link(os.path.join(deep, b"deep"), os.path.join(base, b"link to deep"))
        os.symlink(b"t" * 1000, os.path.join(base, b"long symlink"))
        put(b"old", b"before 1970")
        if support.is_root():
            os.chown(put(b"huge id"), 2**32 - 2, 3_000_000_000)
    for directory, names_below, files in os.walk(base, topdown=False):
        for name in (*names_below, *files, b"."):
            os.utime(os.path.join(directory, name), ns=(TIME, TIME), follow_symlinks=False)
    if not plain:
        os.utime(os.path.join(base, b"old"), ns=(TIME, old))
        os.utime(os.path.join(base, b"dir/small"), ns=(TIME, TIME + 123_456_789))


def of_tree(root: Path, look: Look) -> dict[bytes, Fact]:
    """Facts of every name below ``root``, b"." included."""
    base = os.fsencode(root)
    facts = {}
    for directory, names, files in os.walk(base):
        for name in (*names, *files, *([b"."] if directory == base else [])):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind = _TYPES[stat.S_IFMT(status.st_mode)]
            device = kind in (Type.CHARACTER, Type.BLOCK)
            content = b""
            if kind is Type.FILE:
                with open(path, "rb") as stream:
                    content = stream.read()
            facts[os.path.relpath(path, base)] = Fact(
                kind,
                0o777 if kind is Type.SYMLINK else stat.S_IMODE(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns if look.fractions else status.st_mtime_ns // SECOND * SECOND,
                os.readlink(path) if kind is Type.SYMLINK else b"",
                (os.major(status.st_rdev), os.minor(status.st_rdev)) if device else (0, 0),
                status.st_size if kind is Type.FILE else 0,
                hashlib.sha256(content).hexdigest(),
                _xattrs(path) if look.xattrs else {},
            )
    return facts


def _xattrs(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def of_archive(stream: BinaryIO, scratch: Path, look: Look) -> dict[bytes, Fact]:
    """The same of an archive, contents by way of copy_to and a scratch file."""
    facts: dict[bytes, Fact] = {}
    reader = TarReader(stream)
    for entry in reader:
        name = os.path.normpath(entry.name)
        if entry.type is Type.HARDLINK:
            facts[name] = facts[os.path.normpath(entry.linkname)]
            continue
        with scratch.open("w+b") as content:
            if entry.type is Type.FILE:
                reader.copy_to(content.fileno())
            content.seek(0)
            data = content.read()
        assert len(data) == entry.size
        symlink = entry.type is Type.SYMLINK
        facts[name] = Fact(
            entry.type,
            0o777 if symlink else entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime_ns if look.fractions else entry.mtime_ns // SECOND * SECOND,
            entry.linkname,
            (entry.devmajor, entry.devminor),
            entry.size,
            hashlib.sha256(data).hexdigest(),
            entry.xattrs if look.xattrs else {},
        )
    return facts


def differences(expected: dict[bytes, Fact], found: dict[bytes, Fact]) -> list[str]:
    """What differs, a line each, for a message that can be read."""
    lines = [f"{name!r} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name!r} is too much" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        pairs = zip(Fact._fields, expected[name], found[name], strict=True)
        lines += [f"{name!r}: {field} {b!r}, not {a!r}" for field, a, b in pairs if a != b]
    return sorted(lines)


def write(root: Path, target: Path, *, sparse: bool = False) -> None:
    """Pack the tree below ``root`` with our writer."""
    base = os.fsencode(root)
    seen: dict[tuple[int, int], bytes] = {}
    with target.open("wb") as sink:
        writer = TarWriter(sink)
        for directory, names, files in os.walk(base):
            # A directory, then what is in it: GNU tar sets its times when it is left.
            links = [name for name in names if os.path.islink(os.path.join(directory, name))]
            for name in (b".", *links, *files):
                path = os.path.join(directory, name)
                entry, content = _entry(path, os.path.relpath(path, base), seen, sparse)
                try:
                    writer.add(entry, content if content is not None else ())
                finally:
                    if content is not None:
                        os.close(content)
        writer.close()


def _entry(
    path: bytes, name: bytes, seen: dict[Any, bytes], sparse: bool
) -> tuple[Entry, int | None]:
    status = os.lstat(path)
    entry = Entry(
        name,
        _TYPES[stat.S_IFMT(status.st_mode)],
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        mtime_ns=status.st_mtime_ns,
        xattrs=_xattrs(path),
    )
    first = seen.setdefault((status.st_dev, status.st_ino), name)
    if first != name:
        entry.type, entry.linkname = Type.HARDLINK, first
    elif entry.type is Type.SYMLINK:
        entry.linkname = os.readlink(path)
    elif entry.type in (Type.CHARACTER, Type.BLOCK):
        entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    elif entry.type is Type.FILE:
        entry.size = status.st_size
        content = os.open(path, os.O_RDONLY)
        if sparse and status.st_blocks * 512 < status.st_size:
            entry.sparse = tuple(data_ranges(content, entry.size))
        return entry, content
    return entry, None
