"""``ROOT/tar-split/LAYER.json.gz``: what it takes to give a layer's tar back byte for byte.

The format is that of :mod:`lamina.archive.split`; the contents of the files are those that the
driver keeps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.types import LayerId

if TYPE_CHECKING:
    from lamina.archive.split import SplitRecorder
    from lamina.drivers import Driver, FileGetter

_SUFFIX = ".json.gz"


@contextmanager
def recording(staged: Path, driver: Driver) -> Iterator[SplitRecorder | None]:
    """Record a tar that is being read in the new file ``staged``; complete after the block.

    Nothing is recorded, and None is yielded, for a driver that keeps the tar itself.
    """
    if driver.keeps_tars:
        yield None
        return
    from lamina.archive.split import SplitRecorder

    with open(staged, "x+b") as sink, SplitRecorder(sink, scratch=staged.parent) as recorder:
        yield recorder
        recorder.finish()


class Splits:
    """The records of all layers, below ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def home(self) -> Path:
        """The directory of the records."""
        return self._path

    def keep(self, staged: Path, layer: LayerId) -> None:
        """Let a complete record, if one was made, appear as that of ``layer``, by one rename."""
        try:
            os.rename(staged, self._file(layer))
        except FileNotFoundError:
            if staged.exists():
                raise

    def has(self, layer: LayerId) -> bool:
        """Whether there is a record of the layer."""
        return self._file(layer).exists()

    def remove(self, layer: LayerId) -> None:
        """Delete a record; one that is not there is no error."""
        self._file(layer).unlink(missing_ok=True)

    def layers(self) -> list[LayerId]:
        """The layers that have a record."""
        return [LayerId(name.removesuffix(_SUFFIX)) for name in os.listdir(self._path)]

    def assemble(self, layer: LayerId, files: FileGetter) -> Iterator[bytes]:
        """The layer's tar, from the record and the files that the driver keeps."""
        from lamina.archive.split import assemble

        with open(self._file(layer), "rb") as records:
            yield from assemble(records, files.open, layer=layer)

    def _file(self, layer: LayerId) -> Path:
        return self._path / f"{layer}{_SUFFIX}"
