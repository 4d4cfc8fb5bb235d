"""What is unpacked and run: a Debian root with python3 and git, made once and cached.

As a plain tar, gzipped (level 6, as registries have it), and as an OCI image layout.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina.kernel.memory import page_aligned
from tests import debian


@dataclass(frozen=True, slots=True)
class Root:
    """The Debian root."""

    tar: Path
    gzip: Path
    entries: int
    diff_id: str
    digest: str

    @property
    def described(self) -> str:
        """For the table's head."""
        size = self.tar.stat().st_size
        return f"{self.entries:,} entries, {size / 1e6:.0f} MB, gzip {_mb(self.gzip)}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A gzipped layer of an image."""

    path: Path
    digest: str
    diff_id: str


def _mb(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.0f} MB"


def root() -> Root:
    """The Debian root, made if it is not in the cache."""
    tar = Path(os.environ.get("LAMINA_BENCH_TAR") or debian.root_tar())
    packed = tar.with_name(tar.name + ".gz")
    if not packed.exists():
        part = packed.with_suffix(".part")
        with part.open("wb") as sink:
            subprocess.run(["gzip", "-6", "-n", "-c", tar], stdout=sink, check=True)
        part.rename(packed)
    names = subprocess.run(["tar", "-tf", tar], capture_output=True, check=True).stdout
    return Root(tar, packed, names.count(b"\n"), sha256(tar), sha256(packed))


def sha256(path: Path) -> str:
    """The digest of a file."""
    buffer, found = memoryview(page_aligned(256 << 10)), hashlib.sha256()
    with path.open("rb", buffering=0) as file:  # hashlib.file_digest has a slow buffer
        while count := file.readinto(buffer):
            found.update(buffer[:count])
    return f"sha256:{found.hexdigest()}"


def oci_layout(root: Root, target: Path, name: str = "root") -> Path:
    """An OCI image layout of the gzipped root, for umoci and containerd."""
    return layout_of([Layer(root.gzip, root.digest, root.diff_id)], target, name)


def layout_of(layers: Sequence[Layer], target: Path, name: str) -> Path:
    """An OCI image layout of gzipped layers."""
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(document: object, media_type: str) -> dict[str, object]:
        data = json.dumps(document).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    prefix = "application/vnd.oci.image"
    for layer in layers:
        shutil.copyfile(layer.path, blobs / layer.digest.removeprefix("sha256:"))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{prefix}.manifest.v1+json",
        "config": add(config, f"{prefix}.config.v1+json"),
        "layers": [
            {
                "mediaType": f"{prefix}.layer.v1.tar+gzip",
                "digest": layer.digest,
                "size": layer.path.stat().st_size,
            }
            for layer in layers
        ],
    }
    described = add(manifest, f"{prefix}.manifest.v1+json")
    described["annotations"] = {
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        "io.containerd.image.name": name,
    }
    index = {"schemaVersion": 2, "manifests": [described]}
    (target / "index.json").write_text(json.dumps(index))
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return target
