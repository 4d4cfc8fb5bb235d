"""Which extended attributes belong to a layer, as one table.

An attribute belongs if it says something about the file that is true on any machine. Labels of
this machine's security modules (``security.selinux``, ``security.ima``...) and views that a file
system offers of something else (``system.nfs4_acl``, ``btrfs.compression``...) do not; nor do the
marks that overlayfs keeps for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class XattrPolicy:
    """Prefixes of names with whether they belong; the first that fits decides, else not."""

    rules: tuple[tuple[str, bool], ...]

    def keeps(self, name: str) -> bool:
        """Whether an attribute of that name belongs to a layer."""
        return next((kept for prefix, kept in self.rules if name.startswith(prefix)), False)


ACL_ACCESS: Final = "system.posix_acl_access"
ACL_DEFAULT: Final = "system.posix_acl_default"
CAPABILITY: Final = "security.capability"

DEFAULT_POLICY: Final = XattrPolicy(
    (
        ("user.", True),
        ("trusted.overlay.", False),
        ("trusted.", True),
        (CAPABILITY, True),
        (ACL_ACCESS, True),
        (ACL_DEFAULT, True),
    )
)
