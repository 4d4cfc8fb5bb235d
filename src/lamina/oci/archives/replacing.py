"""Files that appear when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lamina.errors import name_full


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` after the block; what can't be replaced is written.

    Such are devices and pipes.
    """
    if path.exists() and not path.is_file():
        try:
            with path.open("wb") as file:
                yield file
        except OSError as error:
            name_full(error, path)
            raise
        return
    staged = path.with_name(f".{path.name[:200]}.{os.urandom(4).hex()}")
    try:
        with _made(staged, path) as file:
            yield file
        os.replace(staged, path)
    except OSError as error:
        name_full(error, path)
        if error.filename == str(staged):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        staged.unlink(missing_ok=True)


def _made(staged: Path, path: Path) -> BinaryIO:
    """A new file; an error names the path that it is for."""
    try:
        return staged.open("xb")
    except OSError as error:
        error.filename = os.fspath(path)
        raise
