"""A bounded queue between two threads that either side can end."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """At most ``depth`` items between one producer and one consumer.

    ``queue.SimpleQueue`` (in C) carries the items one way and free slots the other way.
    """

    def __init__(self, depth: int) -> None:
        self._items: SimpleQueue[T | None] = SimpleQueue()
        self._slots: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        for _ in range(depth):
            self._slots.put(None)

    def put(self, item: T) -> bool:
        """Hand over ``item``, waiting for room. False: the consumer wants no more."""
        self._slots.get()
        if self._closed:
            self._slots.put(None)
            return False
        self._items.put(item)
        return True

    def end(self) -> None:
        """Say that nothing follows (producer). Never waits."""
        self._items.put(None)

    def get(self) -> T | None:
        """The next item; None at the end, and ever after."""
        item = self._items.get()
        if item is None:
            self._items.put(None)
        else:
            self._slots.put(None)
        return item

    def close(self) -> None:
        """Want no more (consumer): a waiting producer goes on, its ``put`` returns False."""
        self._closed = True
        self._slots.put(None)
