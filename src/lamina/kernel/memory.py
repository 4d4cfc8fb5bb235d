"""Memory to read files into."""

from __future__ import annotations

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap


def page_aligned(size: int) -> mmap:
    """``size`` bytes of zeros, this process's own, that begin with a page.

    For buffers that much is read into. Where copying is left to the processor (FSRM: "fast short
    rep mov"), the kernel needs four times as long to fill a buffer that begins 8 to 31 bytes into a
    page, on AMD's Zen 3 at least; and malloc(3) puts each large bytearray 16 bytes into one.
    """
    return mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
