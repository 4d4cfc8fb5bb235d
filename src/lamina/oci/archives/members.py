"""The members of a tar archive as files, found by one pass over the headers."""

from __future__ import annotations

import errno
import io
import os
import posixpath
from typing import NamedTuple

from lamina.archive.tar import Entry, TarReader, Type
from lamina.errors import InvalidImage, printable
from lamina.oci.archives.kinds import Kind, is_plain, kind_of
from lamina.oci.layout.files import OpenFile, Region

MAX_MEMBERS = 1 << 17
"""Members of an image archive; a tar of more is none."""

_MAX_LINKS = 10
_BLOBS = "blobs/"


class _Member(NamedTuple):
    offset: int
    size: int
    link: str | None  # the member meant, by its name
    wrong: str  # why it is no file to be read, if it is none


class Members:
    """The files of a tar archive (:class:`lamina.oci.layout.Files`), read where they lie.

    Payload is passed over by seeking. Links, of both kinds, lead to other members alone; docker
    save had symbolic ones for layers that images share. Of several members of one name below
    ``blobs/`` the last counts, as for tar; elsewhere it would depend on the reader which one, so
    that such a member is refused.
    """

    def __init__(self, file: io.FileIO, description: str) -> None:
        """Scan the archive from the position of ``file``, which is closed with the members.

        Raises InvalidArchive for what is no tar, or a truncated one, OSError.
        """
        self._file = file
        self._start = file.tell()
        self._description = description
        self._members: dict[str, _Member] = {}
        self._outside: str | None = None
        try:
            self.kind = self._scan()
            if self.kind is not Kind.PLAIN and self._outside is not None:
                raise InvalidImage(f"{printable(description)} has a member {self._outside!r}")
        except BaseException:
            file.close()
            raise

    def _scan(self) -> Kind:
        for entry in TarReader(self._file):
            if is_plain(entry) or len(self._members) > MAX_MEMBERS:
                return Kind.PLAIN
            self._add(entry)
        return kind_of(self._members)

    def _add(self, entry: Entry) -> None:
        raw = os.fsdecode(entry.name)
        if raw.startswith("/") or ".." in raw.split("/"):
            self._outside = self._outside or printable(raw)
            return
        name = posixpath.normpath(raw)
        known = self._members.get(name)
        member = _member(entry, name)
        if known is not None and not name.startswith(_BLOBS) and entry.type is not Type.DIRECTORY:
            member = member._replace(wrong="there twice")
        self._members[name] = member

    @property
    def description(self) -> str:
        """What the archive is called."""
        return self._description

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def open(self, path: str) -> OpenFile:
        """See :meth:`lamina.oci.layout.Files.open`; any number may be open, till ``close``."""
        member = self._find(path)
        if member.wrong:
            raise InvalidImage(
                f"{printable(path)} in {printable(self._description)} is {member.wrong}"
            )
        stream = Region(self._file.fileno(), self._start + member.offset, member.size)
        return OpenFile(stream, member.size)

    def _find(self, path: str) -> _Member:
        if path.startswith("/") or ".." in path.split("/"):
            raise InvalidImage(
                f"{printable(self._description)} names a path out of itself: {printable(path)!r}"
            )
        name = posixpath.normpath(path)
        for _ in range(_MAX_LINKS):
            member = self._members.get(name)
            if member is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if member.link is None or member.wrong:
                return member
            name = member.link
        raise InvalidImage(
            f"{printable(path)} in {printable(self._description)} is a link without end"
        )

    def close(self) -> None:
        """Close the archive's file."""
        self._file.close()


def _member(entry: Entry, name: str) -> _Member:
    if entry.type is Type.FILE:
        wrong = "" if entry.sparse is None else "sparse, which no image archive's members are"
        return _Member(entry.offset, entry.stored_size, None, wrong)
    if entry.type not in (Type.SYMLINK, Type.HARDLINK):
        return _Member(0, 0, None, "no regular file")
    target = os.fsdecode(entry.linkname)
    if entry.type is Type.SYMLINK:
        target = posixpath.join(posixpath.dirname(name), target)
    target = posixpath.normpath(target)
    if target.startswith(("/", "../")) or target == "..":
        return _Member(0, 0, None, "a link out of the archive")
    return _Member(0, 0, target, "")
