"""Whatever an archive says, it is read or refused: nothing else happens."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import LaminaError
from lamina.oci.archives import PlainTar, open_archive
from lamina.oci.content import read_document
from lamina.oci.copying import select
from lamina.oci.manifest import Index, decode_manifest
from tests.oci import images
from tests.oci.archives.tars import Member, archive, docker_members, oci_members

MADE = images.make({"a": b"a"})
DOCKER = docker_members(MADE, "a:1")
OCI = oci_members(MADE, **{"org.opencontainers.image.ref.name": "a:1"})

_SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_ODD = _JSON | st.sampled_from([
    "manifest.json", "0/layer.tar", "../x", "/", "", "a:1", "A", MADE.top.digest, MADE.top.size, -1,
    2**64, "sha256:", MADE.top.media_type, "application/vnd.oci.image.index.v1+json", [], {},
])  # fmt: skip


def read_all(data: bytes) -> None:
    """All that a caller may do with an archive; LaminaError is all that it may raise."""
    try:
        source = open_archive(io.BytesIO(data), Path(tempfile.gettempdir()))
    except LaminaError:
        return
    try:
        if isinstance(source, PlainTar):
            return
        for found in [image.descriptor for image in source.images()] + [source.resolve(None)]:
            document = decode_manifest(read_document(source, found), found.media_type)
            if isinstance(document, Index):
                select(source, document)
            else:
                images.diff_ids(source, found.digest)
    except LaminaError:
        pass
    finally:
        source.close()


def changed(document: Any, path: list[int], value: object) -> Any:
    """A JSON document with one value in it exchanged: the one that ``path`` leads to."""
    if not path or not isinstance(document, list | dict) or not document:
        return value
    keys = sorted(document) if isinstance(document, Mapping) else list(range(len(document)))
    key = keys[path[0] % len(keys)]
    copy: Any = document.copy()
    copy[key] = changed(document[key], path[1:], value)
    return copy


@given(st.sampled_from(["docker", "oci"]), st.data(), st.lists(st.integers(0, 9)), _ODD)
def test_documents_may_say_anything(
    kind: str, data: st.DataObject, path: list[int], value: object
) -> None:
    members = DOCKER if kind == "docker" else OCI
    documents = [number for number, member in enumerate(members) if member.data[:1] in b"[{"]
    number = data.draw(st.sampled_from([n for n in documents if members[n].data]))
    new = json.dumps(changed(json.loads(members[number].data), path, value)).encode()
    read_all(
        archive([*members[:number], members[number]._replace(data=new), *members[number + 1 :]])
    )


@given(st.sampled_from(["docker", "oci"]), st.data())
def test_any_byte_may_be_another(kind: str, data: st.DataObject) -> None:
    packed = bytearray(archive(DOCKER if kind == "docker" else OCI))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)) | st.just(len(packed)))
    read_all(bytes(packed[:cut]))


@given(st.lists(st.tuples(
    st.sampled_from(["oci-layout", "index.json", "manifest.json", "a", "./a", "a/b", "../a", "/a"]),
    st.sampled_from([b"", b"{}", b"[]", OCI[0].data, OCI[1].data, DOCKER[-1].data]),
    st.sampled_from([b"0", b"1", b"2", b"5"]),
    st.sampled_from(["", "a", "../a", "/a", "index.json", "manifest.json"]),
), max_size=6))  # fmt: skip
def test_any_members_in_any_order(members: list[tuple[str, bytes, bytes, str]]) -> None:
    made = [
        Member(name, content if kind == b"0" else b"", kind, link if kind in b"12" else "")
        for name, content, kind, link in members
    ]
    read_all(archive(made))
