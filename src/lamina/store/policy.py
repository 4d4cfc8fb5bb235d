"""How durable a store is."""

from __future__ import annotations

from enum import Enum


class SyncPolicy(Enum):
    """What survives a power cut. A killed process loses nothing under either.

    The order is always: content first, then the transaction that makes it visible.
    """

    LAYER = "layer"
    """A layer or image that was returned survives. Its content is on disk (``syncfs(2)``)
    before the transaction that records it, and that is on disk before the call returns.
    Containers, their state and what is written into them may lose the last seconds."""

    NONE = "none"
    """Nothing is synced, as fits a CI machine that starts anew after a power cut. The database
    stays whole; a layer recorded in the last seconds may have empty files."""
