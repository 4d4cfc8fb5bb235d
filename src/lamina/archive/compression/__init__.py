"""Compressed streams: told apart by their first bytes, read and written in threads.

Reading is :func:`open_stream`, writing is :func:`compress`. The libraries behind a format are
imported when a stream of that format is met.
"""

from lamina.archive.compression.compress import compress
from lamina.archive.compression.formats import Compression, detect
from lamina.archive.compression.stream import Decompressed, open_stream

__all__ = ["Compression", "Decompressed", "compress", "detect", "open_stream"]
