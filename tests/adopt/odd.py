"""Layers that Docker would have from tars that it did not write itself."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from lamina.archive.split import SplitRecorder
from lamina.archive.tar import TarReader
from lamina.oci import ImageConfig
from lamina.oci.digest import next_chain_id, sha256
from lamina.types import ChainId, DiffId

NAME = "odd/image:1"


def add_layer_with_whiteout_beside(root: Path, parent: str, branch: str) -> str:
    """Add an image to a Docker root, the top layer of which has ``.wh.both`` and ``both``."""
    return add_image(
        root, parent, branch, {"etc/.wh.both": b"", "etc/both": b"live\n", "etc/other": b"1\n"}
    )


def add_layer_with_whiteout_of_no_name(root: Path, parent: str, branch: str) -> str:
    """The same, with an entry that no driver but AUFS takes."""
    files = {"etc/.wh.both": b"", "etc/both": b"live\n", "etc/.wh.": b""}
    return add_image(root, parent, branch, files)


def add_image(root: Path, parent: str, branch: str, files: dict[str, bytes]) -> str:
    """Add an image of one more layer, as Docker's untar on AUFS leaves it: every name as it is."""
    data = _tar(files)
    diff_id = DiffId(sha256(data))
    chain_id = next_chain_id(ChainId(parent), diff_id)
    cache_id = hashlib.sha256(chain_id.encode()).hexdigest()
    directory = root / "aufs/diff" / cache_id
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "aufs/mnt" / cache_id).mkdir()
    below = (root / "aufs/layers" / branch).read_text()
    (root / "aufs/layers" / cache_id).write_text(f"{branch}\n{below}")
    at = root / "image/aufs/layerdb" / chain_id.replace(":", "/")
    at.mkdir()
    for name, text in {
        "cache-id": cache_id,
        "diff": diff_id,
        "parent": parent,
        "size": str(sum(map(len, files.values()))),
    }.items():
        (at / name).write_text(text)
    _record(data, at / "tar-split.json.gz")
    _add_config(root, parent, diff_id)
    return NAME


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _record(data: bytes, path: Path) -> None:
    with path.open("w+b") as sink, SplitRecorder(sink, scratch=path.parent) as recorder:
        for _ in TarReader(io.BytesIO(data), observer=recorder):
            pass
        recorder.finish()


def _add_config(root: Path, parent: str, diff_id: DiffId) -> None:
    config = ImageConfig.for_this_machine()
    config.rootfs.diff_ids = [DiffId(parent), diff_id]
    data = config.encode()
    id = sha256(data)
    (root / "image/aufs/imagedb/content" / id.replace(":", "/")).write_bytes(data)
    path = root / "image/aufs/repositories.json"
    names = json.loads(path.read_text())
    names["Repositories"]["odd/image"] = {NAME: id}
    path.write_text(json.dumps(names))
