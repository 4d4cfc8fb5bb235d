"""Extended attributes on the way from an archive or a lower layer to a file.

Which are taken is a table (:data:`lamina.archive.xattrs.RULES`); what would be read as a mark of
the layer's format gets the name that the format has for it, or is left out. Values are set as they
are, but for ids inside of them, which are mapped as owners are: POSIX ACLs name users and groups
(acl(5)), and file capabilities of version 3 a root user (capabilities(7)).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping

from lamina.archive import acl
from lamina.archive.owners import Owners, Warn
from lamina.archive.whiteout import PLAIN, View
from lamina.archive.xattrs import ACL_ACCESS, ACL_DEFAULT, CAPABILITY, Scope, rule
from lamina.errors import InvalidArchive, UnmappedId, printable
from lamina.kernel import xattr
from lamina.kernel.idmap import IdMap

_NAME_MAX = 255  # XATTR_NAME_MAX and XATTR_SIZE_MAX in include/uapi/linux/limits.h
_VALUE_MAX = 65536

_CAP_V2 = 0x0200_0000
_CAP_V3 = 0x0300_0000
_CAP_VERSION = 0xFF00_0000
_CAP_V2_SIZE = 20
_CAP_V3_SIZE = 24

_NOT_HERE = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES})


class Attributes:
    """Sets attributes under one policy of owners, and warns once of each kind that it can't.

    ``fmt`` is how the layer is kept on disk.
    """

    def __init__(self, owners: Owners, warn: Warn, fmt: View = PLAIN) -> None:
        self._owners = owners
        self._warn = warn
        self._fmt = fmt
        self._warned: set[str] = set()

    def wanted(self, attributes: Mapping[str, bytes], entry: bytes) -> dict[str, bytes]:
        """What of an archive's attributes is to be set on disk: names there, mapped values.

        Raises InvalidArchive for values whose ids can't be read, and for what no file can have.
        """
        wanted = {}
        for name, value in attributes.items():
            if len(os.fsencode(name)) > _NAME_MAX or len(value) > _VALUE_MAX:
                why = f"attribute {printable(name)} is longer than attributes can be"
                raise InvalidArchive(why, entry)
            on_disk = self._fmt.disk_xattr(name)
            reason = left_out(name)
            if on_disk is None or len(os.fsencode(on_disk)) > _NAME_MAX:
                reason = "on disk it would be read as a mark"
            if reason is not None:
                self.warn_once(name, f"attribute {name} is left out: {reason}", entry)
            elif on_disk is not None and (value or name not in (ACL_ACCESS, ACL_DEFAULT)):
                wanted[on_disk] = _mapped(name, value, self._owners.idmap, entry)
        return wanted

    def apply(self, file: int | bytes, attributes: Mapping[str, bytes], entry: bytes) -> None:
        """Set ``attributes``, as :meth:`wanted` gave them, on an open file or a path.

        What the file system has no place for is left out with a warning, as is what this
        process may not set unless the policy says otherwise. Raises OSError, and InvalidArchive
        for values that the kernel finds malformed.
        """
        for name, value in attributes.items():
            try:
                xattr.set(file, name, value)
            except OSError as error:
                why = _fault_of(name, error)
                if why is not None:
                    raise InvalidArchive(f"attribute {name} {why}", entry) from error
                if error.errno not in _NOT_HERE or self._must(name, error):
                    raise
                self.warn_once(name, f"attribute {name} is left out: {error.strerror}", entry)

    def warn_once(self, kind: str, message: str, entry: bytes) -> None:
        """Warn, unless there was a warning of this kind of name before."""
        kind = ".".join(kind.split(".")[:2])
        if kind not in self._warned and len(self._warned) < 100:
            self._warned.add(kind)
            self._warn(f"{message} (first at {entry.decode(errors='backslashreplace')})")

    def _must(self, name: str, error: OSError) -> bool:
        # user.* on a symbolic link, device or FIFO is EPERM for anyone (xattr(7)).
        return (
            self._owners.keeps_attributes
            and not isinstance(error, xattr.XattrUnsupported)
            and not name.startswith("user.")
        )


def _fault_of(name: str, error: OSError) -> str | None:
    """What is wrong with an attribute that no file anywhere could have; None: nothing."""
    if error.errno == errno.EINVAL:
        return "is malformed"
    if error.errno == errno.EACCES and name == ACL_DEFAULT:
        return "is for directories alone"
    return None


def left_out(name: str) -> str | None:
    """Why an attribute is never taken from an archive, or None: it is."""
    found = rule(name)
    return found.why if found.scope is Scope.NEVER else None


def is_mirror(name: str) -> bool:
    """Whether an attribute only shows another one again: XFS lists ACLs so, to root."""
    return name.startswith("trusted.SGI_ACL_")


def _mapped(name: str, value: bytes, idmap: IdMap, entry: bytes) -> bytes:
    if not idmap:
        return value
    if name == CAPABILITY:
        return rooted_capability(value, idmap)
    if name in (ACL_ACCESS, ACL_DEFAULT):
        try:
            return acl.mapped(
                value, lambda uid: idmap.to_host(uid, 0)[0], lambda gid: idmap.to_host(0, gid)[1]
            )
        except UnmappedId:
            raise
        except ValueError as error:
            raise InvalidArchive(f"attribute {name}: {error}", entry) from error
    return value


def rooted_capability(value: bytes, idmap: IdMap) -> bytes:
    """A file capability as it counts for root of ``idmap``: version 3, with the root id mapped.

    Version 2 counts only for processes of the first user namespace (capabilities(7), "File
    capability extended attribute versioning"). Anything else is returned as it is.
    """
    if len(value) not in (_CAP_V2_SIZE, _CAP_V3_SIZE):
        return value
    (magic,) = struct.unpack_from("<I", value)
    version = magic & _CAP_VERSION
    if version == _CAP_V2 and len(value) == _CAP_V2_SIZE:
        inner = 0
    elif version == _CAP_V3 and len(value) == _CAP_V3_SIZE:
        (inner,) = struct.unpack_from("<I", value, _CAP_V2_SIZE)
    else:
        return value
    root, _ = idmap.to_host(inner, 0)
    magic = magic & ~_CAP_VERSION | _CAP_V3
    return struct.pack("<I", magic) + value[4:_CAP_V2_SIZE] + struct.pack("<I", root)
