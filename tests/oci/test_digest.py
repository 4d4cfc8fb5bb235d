from __future__ import annotations

import hashlib

import pytest

from lamina.errors import InvalidName
from lamina.oci import chain_ids, hex_of, sha256
from lamina.types import DiffId


def test_chain_ids_follow_the_specification() -> None:
    a, b, c = (DiffId(sha256(name)) for name in (b"a", b"b", b"c"))
    ab = "sha256:" + hashlib.sha256(f"{a} {b}".encode()).hexdigest()
    abc = "sha256:" + hashlib.sha256(f"{ab} {c}".encode()).hexdigest()
    assert chain_ids([a, b, c]) == [a, ab, abc]
    assert chain_ids([]) == []


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "g" * 64, "sha256:../../etc", "md5:" + "0" * 64, "0" * 64]
)
def test_only_a_digest_becomes_a_file_name(text: str) -> None:
    with pytest.raises(InvalidName):
        hex_of(text)
