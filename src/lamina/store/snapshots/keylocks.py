"""Locks by name, within one process: who works on a key excludes others who do, and nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


class KeyLocks:
    """Any number of locks, each there while somebody holds or wants it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}  # and how many want it

    @contextmanager
    def held(self, *keys: str) -> Iterator[None]:
        """Hold the locks of some keys, taken in the order of their names."""
        with ExitStack() as stack:
            for key in sorted(set(keys)):
                stack.enter_context(self._held(key))
            yield

    @contextmanager
    def _held(self, key: str) -> Iterator[None]:
        with self._mutex:
            lock, wanted = self._locks.get(key) or (threading.Lock(), 0)
            self._locks[key] = lock, wanted + 1
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                lock, wanted = self._locks.pop(key)
                if wanted > 1:
                    self._locks[key] = lock, wanted - 1
