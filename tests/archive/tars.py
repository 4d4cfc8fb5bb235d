"""Small archives for tests, one call an entry."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lamina.archive.tar import Entry, TarWriter, Type
from lamina.archive.unpack import Unpacked, UnpackOptions, unpack
from lamina.archive.whiteout import OVERLAY, Format
from lamina.kernel.idmap import IdMap

MTIME_NS = 1_600_000_000_123_456_789


def file(name: str | bytes, content: bytes = b"", **fields: Any) -> tuple[Entry, bytes]:
    return _entry(name, Type.FILE, size=len(content), **fields), content


def directory(name: str | bytes, mode: int = 0o755, **fields: Any) -> tuple[Entry, bytes]:
    return _entry(name, Type.DIRECTORY, mode=mode, **fields), b""


def symlink(name: str | bytes, target: str | bytes, **fields: Any) -> tuple[Entry, bytes]:
    return _entry(name, Type.SYMLINK, linkname=_bytes(target), mode=0o777, **fields), b""


def hardlink(name: str | bytes, target: str | bytes, **fields: Any) -> tuple[Entry, bytes]:
    return _entry(name, Type.HARDLINK, linkname=_bytes(target), **fields), b""


def fifo(name: str | bytes, **fields: Any) -> tuple[Entry, bytes]:
    return _entry(name, Type.FIFO, **fields), b""


def device(
    name: str | bytes, major: int, minor: int, kind: Type = Type.CHARACTER, **fields: Any
) -> tuple[Entry, bytes]:
    return _entry(name, kind, devmajor=major, devminor=minor, **fields), b""


def archive(*entries: tuple[Entry, bytes]) -> bytes:
    sink = io.BytesIO()
    writer = TarWriter(sink)
    for entry, content in entries:
        writer.add(entry, [content] if content else ())
    writer.close()
    return sink.getvalue()


def unpacked(
    root: Path,
    *entries: tuple[Entry, bytes],
    fmt: Format = OVERLAY,
    lowers: tuple[Path, ...] | None = None,
    idmap: IdMap = IdMap(),
    **options: Any,
) -> Unpacked:
    """Unpack the entries into a new directory ``root``."""
    root.mkdir()
    stream = io.BytesIO(archive(*entries))
    return unpack(
        stream, root, fmt=fmt, lowers=lowers, idmap=idmap, options=UnpackOptions(**options)
    )


def _entry(name: str | bytes, kind: Type, **fields: Any) -> Entry:
    return Entry(_bytes(name), kind, **{"mtime_ns": MTIME_NS, **fields})


def _bytes(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode()
