"""Image archives as tests want them: whole, odd and hostile."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from typing import NamedTuple

from lamina.oci.layout.reading import blob_path
from tests.oci import images

CONFIG = "c0.json"


class Member(NamedTuple):
    """A member of an archive: a file, a link or anything."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""


def archive(members: Iterable[Member]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname = member.type, member.link
            info.size = len(member.data)
            tar.addfile(info, io.BytesIO(member.data))
    return sink.getvalue()


def docker_members(made: images.Made, *tags: str, **overrides: object) -> list[Member]:
    """An image as Docker before 25 saves it; ``overrides`` are members of ``manifest.json``."""
    (_, config), *layers = made.blobs
    members = [Member(CONFIG, config)]
    names = []
    for number, (_, data) in enumerate(layers):
        members.append(Member(f"{number}/", type=tarfile.DIRTYPE))
        members.append(Member(f"{number}/VERSION", b"1.0"))
        members.append(Member(f"{number}/layer.tar", data))
        names.append(f"{number}/layer.tar")
    item = {"Config": CONFIG, "RepoTags": list(tags) or None, "Layers": names} | overrides
    return [*members, Member("manifest.json", json.dumps([item]).encode())]


def oci_members(made: images.Made, **annotations: str) -> list[Member]:
    """An image layout with one image."""
    entry = made.top.copy()
    entry.annotations = annotations or None
    index = {"schemaVersion": 2, "manifests": [json.loads(entry.encode())]}
    blobs = [(made.top, made.data), *made.blobs]
    return [
        Member("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
        Member("index.json", json.dumps(index).encode()),
        *(Member(blob_path(descriptor.digest), data) for descriptor, data in blobs),
    ]
