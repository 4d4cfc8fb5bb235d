"""Which extended attributes belong to a layer, as one table.

An attribute belongs if it says something about the file that is true on any machine. Labels of
this machine's security modules (``security.selinux``, ``security.ima``...) and views that a file
system offers of something else (``system.nfs4_acl``, ``btrfs.compression``...) do not; nor do the
marks that overlayfs keeps for itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from lamina.archive import acl
from lamina.archive.whiteout import View
from lamina.kernel import xattr
from lamina.kernel.idmap import IdMap


@dataclass(frozen=True, slots=True)
class XattrPolicy:
    """Prefixes of names with whether they belong; the first that fits decides, else not."""

    rules: tuple[tuple[str, bool], ...]

    def keeps(self, name: str) -> bool:
        """Whether an attribute of that name belongs to a layer."""
        return next((kept for prefix, kept in self.rules if name.startswith(prefix)), False)

    def read(self, file: int | bytes, view: View, path: bytes) -> dict[str, bytes]:
        """The attributes of a file that belong to its layer, by name.

        Raises OSError, and LayerBroken naming ``path`` where one says that part of the file is in
        another layer.
        """
        found = xattr.list_all(file)
        if not found:
            return found
        kept = {}
        for name in sorted(found):
            if view.private_xattr(name):
                view.check_xattr(name, path)
            elif self.keeps(name):
                kept[name] = found[name]
        return kept


ACL_ACCESS: Final = "system.posix_acl_access"
ACL_DEFAULT: Final = "system.posix_acl_default"
CAPABILITY: Final = "security.capability"

DEFAULT_POLICY: Final = XattrPolicy(
    (
        ("user.overlay.", False),
        ("user.", True),
        ("trusted.overlay.", False),
        ("trusted.SGI_ACL_", False),  # how XFS shows POSIX ACLs once more
        ("trusted.", True),
        (CAPABILITY, True),
        (ACL_ACCESS, True),
        (ACL_DEFAULT, True),
    )
)

_CAP_VERSION = 0xFF00_0000
_CAP_V2_MAGIC = 0x0200_0000
_CAP_V3_MAGIC = 0x0300_0000
_CAP_V2_SIZE = 20
_CAP_V3 = struct.Struct("<I16sI")  # magic and flags, two pairs of sets, root id


def to_container(attributes: dict[str, bytes], idmap: IdMap) -> dict[str, bytes]:
    """Attributes with the ids in them as they are inside: of ACLs, and of file capabilities' root.

    Raises UnmappedId, and ValueError for an ACL that can't be read.
    """
    return {name: _to_container(name, value, idmap) for name, value in attributes.items()}


def _to_container(name: str, value: bytes, idmap: IdMap) -> bytes:
    if name in (ACL_ACCESS, ACL_DEFAULT):
        root_uid, root_gid = idmap.root
        return acl.mapped(
            value,
            lambda uid: idmap.to_container(uid, root_gid)[0],
            lambda gid: idmap.to_container(root_uid, gid)[1],
        )
    if name == CAPABILITY:
        return _inner_capability(value, idmap)
    return value


def _inner_capability(value: bytes, idmap: IdMap) -> bytes:
    """A file capability for root of the container as an image has it: version 2, without an id.

    One that counts for root of a namespace inside keeps version 3, with that root's id inside
    (capabilities(7), "File capability extended attribute versioning").
    """
    if len(value) != _CAP_V3.size:
        return value
    magic, sets, root = _CAP_V3.unpack(value)
    if magic & _CAP_VERSION != _CAP_V3_MAGIC:
        return value
    inner, _ = idmap.to_container(root, idmap.root[1])
    if inner:
        return _CAP_V3.pack(magic, sets, inner)
    return _CAP_V3.pack(magic & ~_CAP_VERSION | _CAP_V2_MAGIC, sets, 0)[:_CAP_V2_SIZE]
