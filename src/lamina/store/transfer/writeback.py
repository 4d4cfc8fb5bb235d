"""Writing to disk what is unpacked while more of it is unpacked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

PAUSE = 0.2
"""Seconds between one sync and the next: what takes less than that is synced once, at its end."""


class Synced(Protocol):
    """What keeps files: a store's core, a root of snapshots."""

    @property
    def durable(self) -> bool:
        """Whether its policy has syncs."""

    def sync_content(self) -> None:
        """Wait until all its files are on disk, if that is the policy."""


@contextmanager
def written_early(core: Synced) -> Iterator[None]:
    """Sync the store's files over and over in the block, so that the sync after it waits little.

    The kernel would begin to write seconds later, when the work is done and waits for the disk.
    It takes no sync's place: what is written last in the block may not be on disk after it. Does
    nothing where the store's policy has no syncs.

    Raises OSError after the block if the disk failed: a later sync might not be told.
    """
    if not core.durable:
        yield
        return
    done = threading.Event()

    def sync() -> None:
        while not done.wait(PAUSE):
            core.sync_content()

    with ThreadPoolExecutor(1, "lamina-sync") as pool:
        syncing = pool.submit(sync)
        try:
            yield
        finally:
            done.set()
    syncing.result()
