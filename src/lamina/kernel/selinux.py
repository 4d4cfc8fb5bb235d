"""SELinux labels as mount options."""

from __future__ import annotations


def format_mount_label(options: str, label: str) -> str:
    """``options`` with the mount context ``label`` added, quoted because labels hold commas.

    As ``label.FormatMountLabel`` of opencontainers/selinux: an empty label changes nothing.
    """
    if not label:
        return options
    context = f'context="{label}"'
    return f"{options},{context}" if options else context
