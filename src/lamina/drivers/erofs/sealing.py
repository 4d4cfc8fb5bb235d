"""Noticing that a layer's files changed on disk.

The tar has its DiffID; of the index, and of what lies beside the tar, ``facts`` records digests,
which ``lamina check`` compares. Where the file system has fs-verity the files get it when the layer
is made: the kernel then refuses to write them, and to read what is not what it was. Their fs-verity
digests are recorded in ``verity`` and compared at each mount, so that a file in the place of
another is found before anything of it shows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time

from lamina.errors import LayerBroken
from lamina.kernel import verity
from lamina.log import Log

log = Log(__name__)

RECORD = "verity"
"""Where a layer's digests are recorded."""

_FILES = ("tar", "index", "beside")
_BUSY_RETRIES = 20
_BUSY_PAUSE = 0.05  # seconds


def digests(path: str) -> dict[str, str]:
    """SHA-256 of the files of a layer that no DiffID vouches for, in the directory ``path``."""
    found = {}
    for name in ("index", "beside"):
        try:
            with open(f"{path}/{name}", "rb") as file:
                found[name] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except FileNotFoundError:
            pass
    return found


def seal(path: str) -> bool:
    """Let the layer's files have fs-verity, and record the digests; False where there is none."""
    recorded = {}
    for name in _FILES:
        try:
            fd = os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if not _enable(fd):
                return False
            recorded[name] = verity.measure(fd)
        finally:
            os.close(fd)
    with open(f"{path}/{RECORD}", "w") as file:
        json.dump(recorded, file)
    return True


def _enable(fd: int) -> bool:
    """:func:`verity.enable`; ETXTBSY may pass: a child that another thread forked has the file open
    for writing, as all our files, until it execs."""
    for _ in range(_BUSY_RETRIES):
        try:
            return verity.enable(fd)
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
            time.sleep(_BUSY_PAUSE)
    return verity.enable(fd)


def check(path: str) -> None:
    """Compare what was recorded, if anything was, with what the kernel says now.

    A store that was moved to where there is no fs-verity is used as if nothing were recorded.

    Raises:
        LayerBroken: a file has another digest, or none.
    """
    try:
        with open(f"{path}/{RECORD}", "rb") as file:
            recorded = json.load(file)
    except FileNotFoundError:
        return
    layer = os.path.basename(path)
    for name, digest in recorded.items():
        try:
            fd = os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LayerBroken(layer, f"its {name} is gone") from None
        try:
            actual = verity.measure(fd)
        except OSError as error:
            if not verity.is_absent(error):
                raise
            log.debug("layer %s: no fs-verity here to check it by", layer)
            return
        finally:
            os.close(fd)
        if actual != digest:
            said = "has no fs-verity any more" if actual is None else f"has digest {actual}"
            raise LayerBroken(layer, f"its {name} {said}, recorded is {digest}")
