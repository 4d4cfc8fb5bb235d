"""What a file is that is no tar, for whoever gave the wrong one."""

from __future__ import annotations

from lamina.errors import NotAnArchive

_MAGIC = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"!<arch>\n", "a Debian package or another ar archive"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
    (b"0707", "a cpio archive"),
    (b"\x7fELF", "a program"),
    (b"hsqs", "a SquashFS image"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"%PDF-", "a PDF document"),
)
_TEXT = frozenset(b"\t\n\r\f\b\x1b") | frozenset(range(0x20, 0x7F)) | frozenset(range(0x80, 0x100))


def refuse(head: bytes) -> NotAnArchive:
    """The error for a stream without compression that begins with ``head``, which is no header."""
    if not head:
        return NotAnArchive("empty")
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return NotAnArchive(f"{what}, not a tar archive")
    if _TEXT.issuperset(head):
        return NotAnArchive("text, not a tar archive")
    return NotAnArchive("not a tar archive")
