"""What ``import lamina`` offers, with the rooms put together: a store that can run commands."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamina import store


def _run(root: Path, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    from lamina.sandbox.run import run  # a store that runs nothing needs none of it

    return run(root, argv, **options)


class Store(store.Store):
    """A store whose containers run commands (:mod:`lamina.sandbox.run`)."""

    __doc__ = store.Store.__doc__
    _runner = staticmethod(_run)
