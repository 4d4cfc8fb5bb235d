"""What the differ unpacks goes to disk meanwhile, where a commit is to wait for that."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.kernel import copy
from lamina.store.policy import SyncPolicy
from lamina.store.snapshots import Snapshots
from lamina.store.snapshots.diffs import Diffs
from lamina.types import Digest
from tests.oci.images import tar

PATIENCE = 20.0  # seconds
pytestmark = pytest.mark.root


class Slow(io.BytesIO):
    """A blob that is not there before ``event`` is, or for a second where it must not come."""

    def __init__(self, data: bytes, event: threading.Event, patience: float) -> None:
        super().__init__(data)
        self._event, self._patience = event, patience

    def read(self, size: int | None = -1, /) -> bytes:
        self._event.wait(self._patience)
        return super().read(size)


@contextmanager
def _open(tmp_path: Path, sync: SyncPolicy) -> Iterator[Snapshots]:
    with Snapshots(tmp_path / "root", run=tmp_path / "run", driver="overlay", sync=sync) as opened:
        yield opened


@pytest.mark.parametrize("sync", [SyncPolicy.LAYER, SyncPolicy.NONE])
def test_a_blob_is_synced_while_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: SyncPolicy
) -> None:
    synced, real = threading.Event(), copy.syncfs

    def syncfs(fd: int) -> None:
        real(fd)
        synced.set()

    monkeypatch.setattr(copy, "syncfs", syncfs)
    data = tar({"file": b"content"})
    digest = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
    wanted = sync is SyncPolicy.LAYER
    blob = Slow(data, synced, PATIENCE if wanted else 1)
    with _open(tmp_path, sync) as snapshots:
        mounts = snapshots.prepare("new")
        Diffs(snapshots).apply(mounts, blob, digest=digest, size=len(data))
        assert synced.is_set() is wanted
