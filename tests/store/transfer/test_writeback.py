"""What is unpacked goes to disk meanwhile, where it has to be there in the end."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import pytest

from lamina.kernel import copy
from lamina.oci.descriptor import Descriptor
from lamina.oci.layout import LayoutDirectory
from lamina.store import SyncPolicy
from lamina.store.core import Core
from lamina.store.transfer.writeback import written_early
from tests.oci.images import make, put
from tests.store.conftest import MakeStore

PATIENCE = 20.0  # seconds


def core_of(open_store: MakeStore, sync: SyncPolicy) -> Core:
    core: Core = open_store(sync=sync)._core
    return core


def watch_syncs(monkeypatch: pytest.MonkeyPatch, real: Callable[[int], None]) -> threading.Event:
    synced = threading.Event()

    def syncfs(fd: int) -> None:
        try:
            real(fd)
        finally:
            synced.set()

    monkeypatch.setattr(copy, "syncfs", syncfs)
    return synced


def fail(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_files_are_synced_while_the_work_goes_on(
    open_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = watch_syncs(monkeypatch, copy.syncfs)
    core = core_of(open_store, SyncPolicy.LAYER)
    with written_early(core):
        assert synced.wait(PATIENCE)


def test_nothing_is_synced_where_the_policy_is_not_to(
    open_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = watch_syncs(monkeypatch, copy.syncfs)
    core = core_of(open_store, SyncPolicy.NONE)
    with written_early(core):
        assert not synced.wait(1)


def test_a_disk_that_fails_meanwhile_is_told_after_the_work(
    open_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = watch_syncs(monkeypatch, fail)
    core = core_of(open_store, SyncPolicy.LAYER)
    finished = False
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), written_early(core):
        assert synced.wait(PATIENCE)
        finished = True
    assert finished


def test_an_error_of_the_work_itself_comes_first(
    open_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = watch_syncs(monkeypatch, fail)
    core = core_of(open_store, SyncPolicy.LAYER)
    with pytest.raises(KeyError), written_early(core):
        assert synced.wait(PATIENCE)
        raise KeyError


def test_no_image_is_there_after_a_sync_that_failed_before_the_last(
    open_store: MakeStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel tells an error once: the sync at the end may find nothing wrong."""
    store = open_store()
    real, first = copy.syncfs, threading.Event()

    def fail_once(fd: int) -> None:
        if not first.is_set():
            first.set()
            fail(fd)
        real(fd)

    class Slow(LayoutDirectory):
        def open(self, descriptor: Descriptor, offset: int = 0) -> BinaryIO:
            if descriptor.digest in layers:
                assert first.wait(PATIENCE)
            return super().open(descriptor, offset)

    made = make({"etc/motd": b"one"})
    layers = {descriptor.digest for descriptor, _ in made.blobs[1:]}
    with closing(Slow.create(tmp_path / "layout")) as layout:
        put(layout, made, "example.com/box:1")
        monkeypatch.setattr(copy, "syncfs", fail_once)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            store.load(layout)
    assert not [*store.images, *store.layers]
