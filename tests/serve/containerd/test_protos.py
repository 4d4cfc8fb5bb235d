"""The messages are made of the .proto files, and are containerd's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.serve.containerd.api import diff_pb2, mount_pb2, snapshots_pb2

REPOSITORY = Path(__file__).resolve().parents[3]
API = REPOSITORY / "src/lamina/serve/containerd/api"


def test_the_messages_are_what_the_script_makes(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([REPOSITORY / "scripts/protos", tmp_path], check=True, env=env)
    made = {path.name: path.read_text() for path in tmp_path.rglob("*_pb2.py*")}
    assert made == {path.name: path.read_text() for path in API.glob("*_pb2.py*")}


@pytest.mark.parametrize(
    ("module", "message", "fields"),
    [
        (mount_pb2, "Mount", "type=1 source=2 target=3 options=4"),
        (snapshots_pb2, "PrepareSnapshotRequest", "snapshotter=1 key=2 parent=3 labels=4"),
        (snapshots_pb2, "CommitSnapshotRequest", "snapshotter=1 name=2 key=3 labels=4 parent=5"),
        (snapshots_pb2, "UpdateSnapshotRequest", "snapshotter=1 info=2 update_mask=3"),
        (
            snapshots_pb2,
            "Info",
            "name=1 parent=2 kind=3 created_at=4 updated_at=5 labels=6",
        ),
        (snapshots_pb2, "UsageResponse", "size=1 inodes=2"),
        (diff_pb2, "ApplyRequest", "diff=1 mounts=2 payloads=3 sync_fs=4"),
        (diff_pb2, "DiffResponse", "diff=3"),
    ],
)
def test_fields_have_containerds_numbers(module: object, message: str, fields: str) -> None:
    descriptor = getattr(module, message).DESCRIPTOR
    assert " ".join(f"{f.name}={f.number}" for f in descriptor.fields) == fields
    assert descriptor.full_name.startswith("containerd.")
