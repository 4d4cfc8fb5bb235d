"""Tar archives: a streaming reader and writer of ustar, GNU and pax.

    for entry in TarReader(stream):
        if entry.type is Type.FILE:
            reader.copy_to(fd)

Nothing here touches a file by its name: an entry is what the archive says, safe or not.
"""

from lamina.archive.tar.entry import Entry, Limits, Type
from lamina.archive.tar.reader import Observer, TarReader
from lamina.archive.tar.writer import END, TarWriter, encode, padding

__all__ = [
    "END",
    "Entry",
    "Limits",
    "Observer",
    "TarReader",
    "TarWriter",
    "Type",
    "encode",
    "padding",
]
