"""A stream of pieces has the bytes that were put in, whatever their sizes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive import pieces
from lamina.archive.pieces import Pieces


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["put", "small", "read"]), st.integers(0, 200))))
def test_bytes_come_out_as_they_went_in(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as file:
        patch.setattr(pieces, "PIECE", 64)
        patch.setattr(pieces, "_ROOM", 16)
        content = bytes(range(150))
        file.write(content)
        file.flush()
        expected = b""

        def stream() -> Iterator[bytes | memoryview]:
            nonlocal expected
            out = Pieces()
            for number, (step, size) in enumerate(steps):
                data = bytes([number % 251]) * size
                if step == "put":
                    out.put(data)
                    expected += data
                elif step == "small":
                    if out.read_whole(file.fileno(), size):
                        expected += content[:size]
                    yield from out.full()
                else:
                    missing = yield from out.read(file.fileno(), 0, size)
                    assert missing == max(0, size - 150)
                    expected += content[:size] + bytes(missing)
            yield from out.flush()

        assert b"".join(bytes(piece) for piece in stream()) == expected


def test_a_file_shorter_than_said_is_not_read_as_a_whole() -> None:
    with tempfile.TemporaryFile() as file:
        os.write(file.fileno(), b"abc")
        out = Pieces()
        assert not out.read_whole(file.fileno(), 4)
        assert out.read_whole(file.fileno(), 3)
        assert b"".join(out.flush()) == b"abc"
