"""Other processes that use a store."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import lamina

_SOURCE = str(next(iter(lamina.__path__)).removesuffix("/lamina"))
_TESTS = str(Path(__file__).parents[2])
PIPE = subprocess.PIPE


def start(code: str, *args: object, **options: Any) -> subprocess.Popen[bytes]:
    """A Python process that runs ``code``; the arguments are its ``sys.argv[1:]``."""
    setup = f"import sys; sys.path[:0] = [{_SOURCE!r}, {_TESTS!r}]\n"
    return subprocess.Popen(
        [sys.executable, "-c", setup + textwrap.dedent(code), *map(str, args)], **options
    )


def run(code: str, *args: object) -> str:
    """Run such a process to its end, which must be a good one; returns what it printed."""
    done = start(code, *args, stdout=subprocess.PIPE)
    out, _ = done.communicate()
    assert done.returncode == 0
    return out.decode()
