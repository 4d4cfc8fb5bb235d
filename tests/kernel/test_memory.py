"""lamina.kernel.memory."""

from __future__ import annotations

import ctypes
import mmap
import os

from lamina.kernel.memory import page_aligned


def test_a_buffer_begins_with_a_page_and_is_zero() -> None:
    buffer = page_aligned(300_000)
    assert len(buffer) == 300_000
    assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % mmap.PAGESIZE == 0
    assert buffer[:] == bytes(300_000)


def test_a_forked_child_writes_to_its_own() -> None:
    buffer = page_aligned(4096)
    pid = os.fork()
    if not pid:
        buffer[0] = 1
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert buffer[0] == 0
