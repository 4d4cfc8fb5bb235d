"""What an import watches for while a tar passes."""

from __future__ import annotations

from collections.abc import Callable

from lamina.archive.compression import Decompressed
from lamina.archive.tar import Entry, Observer, Unobserved
from lamina.errors import InvalidArchive
from lamina.oci import is_image_archive_member
from lamina.progress import Progress, ProgressCallback

_SYSTEM_DIRECTORIES = (b"bin", b"etc", b"usr")


class RootFsWatch:
    """Hands everything to a recorder, but refuses the tar of an image (an Observer)."""

    def __init__(self, recorder: Observer | None) -> None:
        self._recorder = recorder or Unobserved()
        self._undecided = True
        self.raw = self._recorder.raw
        self.payload = self._recorder.payload
        self.end = self._recorder.end

    def begin(self, entry: Entry) -> None:
        """A root file system may have a manifest.json too, but has other things before."""
        if self._undecided:
            top = entry.name.removeprefix(b"./").partition(b"/")[0]
            if top in _SYSTEM_DIRECTORIES:
                self._undecided = False
            elif is_image_archive_member(entry.name):
                raise InvalidArchive(
                    "this is an image ('docker save' or OCI layout), not a root file system: "
                    "'lamina load' takes it",
                    entry.name,
                )
        self._recorder.begin(entry)


def reporter(
    tar: Decompressed, what: str, total: int | None, report: ProgressCallback
) -> Callable[[int], None]:
    """Reports how much of the source of ``tar``, of ``total`` bytes, was read."""

    def at(_: int) -> None:
        report(Progress(what, tar.compressed_size, total, "bytes"))

    return at
