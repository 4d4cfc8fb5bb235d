"""Tar archives: a streaming reader and writer of ustar, GNU and pax.

    reader = TarReader(stream)
    for entry in reader:
        if entry.type is Type.FILE:
            reader.copy_to(fd)

Nothing here touches a file by its name: an entry is what the archive says, safe or not.
"""

from lamina.archive.tar.entry import Entry, Limits, Type
from lamina.archive.tar.reader import Observer, TarReader, Unobserved
from lamina.archive.tar.source import Readable
from lamina.archive.tar.writer import END, TarWriter, Writable, encode, padding

__all__ = [
    "END",
    "Entry",
    "Limits",
    "Observer",
    "Readable",
    "TarReader",
    "TarWriter",
    "Type",
    "Unobserved",
    "Writable",
    "encode",
    "padding",
]
