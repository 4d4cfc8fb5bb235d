"""Which extended attributes a layer tar carries, as one table; and how their ids are read.

========= ========================================= ==============================================
policy    packs                                     for
========= ========================================= ==============================================
PORTABLE  what is true of the file on any machine,  layers that Docker, Podman and containerd are
          and that every reader takes as that       to unpack; the default
ALL       what can be set on another file at all    copies, where nothing may be lost
========= ========================================= ==============================================

Names in a tar are those that a process in the container sees. On disk a whiteout format may have
others for those that look like its own marks (:meth:`View.content_xattr` and
:meth:`View.disk_xattr`, which are each other's inverse): overlayfs since Linux 6.7 keeps the
``trusted.overlay.opaque`` of a file in it as ``trusted.overlay.overlay.opaque``
(Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts"). So what overlayfs notes for
itself is in no tar, and whatever a tar says, no mark of overlayfs comes of it.

From an archive everything is taken but what no policy packs, whichever policy it was packed with.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from lamina.archive import acl
from lamina.archive.whiteout import View
from lamina.kernel import xattr
from lamina.kernel.idmap import IdMap

ACL_ACCESS: Final = "system.posix_acl_access"
ACL_DEFAULT: Final = "system.posix_acl_default"
CAPABILITY: Final = "security.capability"


class Scope(enum.IntEnum):
    """The narrowest policy that carries an attribute."""

    PORTABLE = 0
    ALL = 1
    NEVER = 2


class Rule(NamedTuple):
    """What becomes of the attributes whose names begin with ``prefix``."""

    prefix: str
    scope: Scope
    why: str = ""
    """Why not every policy carries them."""


_LABEL = "it is a label of the machine's own security module"

RULES: Final = (
    Rule("user.overlay.", Scope.ALL, "readers that don't escape it take it for overlayfs's mark"),
    Rule("user.", Scope.PORTABLE),
    Rule("trusted.overlay.", Scope.ALL, "readers that don't escape it take it for a mark"),
    Rule(
        "trusted.SGI_ACL_",
        Scope.NEVER,
        "it is how XFS keeps the POSIX ACL that is there already",
    ),
    Rule("trusted.", Scope.PORTABLE),
    Rule(CAPABILITY, Scope.PORTABLE),
    Rule("security.selinux", Scope.NEVER, "a layer's label is given when it is mounted"),
    Rule("security.SMACK64", Scope.NEVER, _LABEL),
    Rule("security.apparmor", Scope.NEVER, _LABEL),
    Rule("security.evm", Scope.NEVER, "the kernel makes it with a key of the machine"),
    Rule("security.", Scope.ALL, "it means something only where the same policy is in force"),
    Rule(ACL_ACCESS, Scope.PORTABLE),
    Rule(ACL_DEFAULT, Scope.PORTABLE),
    Rule("", Scope.NEVER, "it is the file system's view of something else"),
)
"""The first rule whose prefix fits counts; the last one fits all: ``system.nfs4_acl``,
``btrfs.compression`` and whatever else a file system shows."""


def rule(name: str) -> Rule:
    """The rule for an attribute."""
    return next(rule for rule in RULES if name.startswith(rule.prefix))


class XattrPolicy(NamedTuple):
    """Which attributes of files are packed: those of ``scope`` and of narrower ones."""

    scope: Scope

    def keeps(self, name: str) -> bool:
        """Whether a layer tar carries an attribute of that name."""
        return self.scope >= rule(name).scope

    def read(self, file: int | bytes, view: View, path: bytes) -> dict[str, bytes]:
        """The attributes of a file that its layer's tar carries, by their names there.

        Raises OSError, and LayerBroken naming ``path`` where one says that part of the file is in
        another layer.
        """
        return self.select(xattr.list_all(file), view, path)

    def select(self, found: dict[str, bytes], view: View, path: bytes) -> dict[str, bytes]:
        """:meth:`read` of attributes as they are on disk."""
        kept = {}
        for name in sorted(found):
            inside = view.content_xattr(name)
            if inside is None:
                view.check_xattr(name, path)
            elif self.keeps(inside):
                kept[inside] = found[name]
        return kept

    def records(self, attributes: dict[str, bytes]) -> dict[str, bytes]:
        """Pax records beside ``attributes``, which are as in the tar.

        With ALL the ACLs once more as text, since bsdtar(1) and ``tar --acls`` read no others.
        """
        if self.scope is Scope.PORTABLE or attributes.keys().isdisjoint(acl.RECORDS.values()):
            return {}
        return {
            record: acl.text(attributes[name]).encode()
            for record, name in acl.RECORDS.items()
            if name in attributes
        }


PORTABLE: Final = XattrPolicy(Scope.PORTABLE)
ALL: Final = XattrPolicy(Scope.ALL)
POLICIES: Final = {"portable": PORTABLE, "all": ALL}
DEFAULT_POLICY: Final = PORTABLE

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
