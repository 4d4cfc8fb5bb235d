"""What the store needs to run a command; whoever stands above it provides that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import subprocess


class Runner(Protocol):
    """Runs a command with ``root`` as its root directory (:func:`lamina.sandbox.run.run`)."""

    def __call__(
        self,
        root: Path,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        user: str | None,
        network: str,
        check: bool,
        **options: Any,
    ) -> subprocess.CompletedProcess[bytes]:
        """Returns when the command has ended; with ``check`` False whatever its status."""
