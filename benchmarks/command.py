"""The command ``lamina``."""

from __future__ import annotations

import sys
from pathlib import Path


def lamina() -> list[str]:
    """The command, as it is installed or else as an installer would write it."""
    installed = Path(sys.executable).with_name("lamina")
    if installed.exists():
        return [str(installed)]
    return [sys.executable, "-c", "import sys; from lamina.cli import main; sys.exit(main())"]
