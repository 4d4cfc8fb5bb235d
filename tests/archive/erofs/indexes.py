"""Indexes to test with: built from an archive, mounted, and compared with the archive unpacked."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.archive.erofs import Built, Image, Layers, build_index, open_image
from lamina.archive.unpack import unpack
from lamina.archive.whiteout import OVERLAY
from lamina.kernel.erofs import mount_erofs
from lamina.kernel.mount import mount_new, unmount
from tests.archive import trees

IDENTITY = "sha256:" + "5" * 64


@dataclass(frozen=True)
class Index:
    """An index on disk, and the devices it needs."""

    path: Path
    devices: tuple[Path, ...]
    built: Built | None = None

    def open(self) -> Any:
        return open_image(self.path, self.devices)

    @contextmanager
    def mounted(self, **options: Any) -> Iterator[Path]:
        """Mounted by the kernel; gone at the end."""
        target = self.path.with_name(self.path.name + ".mnt")
        target.mkdir(exist_ok=True)
        mount_erofs(self.path, self.devices, target, **options)
        try:
            yield target
        finally:
            unmount(target)


def build(
    place: Path, archive: bytes | Path, lowers: Sequence[Index] | None = None, **options: Any
) -> Index:
    """Index an archive; ``lowers`` topmost first."""
    place.mkdir(exist_ok=True)
    tar = archive
    if isinstance(tar, bytes):
        tar = place / "layer.tar"
        tar.write_bytes(archive)  # type: ignore[arg-type]
    index, beside = place / "index", place / "beside"
    with ExitStack() as stack:
        below = None
        if lowers is not None:
            below = Layers([stack.enter_context(lower.open()) for lower in lowers])
        fd = os.open(index, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        stack.callback(os.close, fd)
        built = build_index(tar, fd, identity=IDENTITY, lowers=below, beside=beside, **options)
    devices = (tar, beside) if built.beside_size else (tar,)
    return Index(index, devices, built)


@contextmanager
def memory(place: Path) -> Iterator[Path]:
    """A tmpfs, which takes every attribute and any time."""
    place.mkdir()
    mount_new("tmpfs", place, [("size", "8g"), ("nr_inodes", "4m")])
    try:
        yield place
    finally:
        unmount(place)


def unpacked(root: Path, archive: bytes | Path, lowers: Sequence[Path] | None = None) -> Path:
    """The same archive unpacked."""
    root.mkdir()
    stream = io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")
    with stream:
        unpack(stream, root, fmt=OVERLAY, lowers=lowers)
    return root


def facts(root: Path) -> dict[bytes, Any]:
    """Everything that can be seen of a tree, but for times that are the present."""
    found = trees.describe(root)
    for path, about in found.items():
        status = os.lstat(os.fsencode(root) + b"/" + path)
        about["links"] = status.st_nlink
        about["size"] = None if about["mode"].startswith("0o4") else status.st_size
        if about["mode"] == "0o20000" and not about["device"]:
            about["mtime"] = None  # a whiteout
    return found


def of_image(image: Image) -> dict[bytes, Any]:
    """The same facts by our own reader."""
    found: dict[bytes, Any] = {}
    inodes = dict(image.walk())
    first: dict[int, bytes] = {}
    for path in sorted(inodes):
        inode = inodes[path]
        about: dict[str, Any] = {
            "mode": oct(inode.mode),
            "owner": (inode.uid, inode.gid),
            "xattrs": image.xattrs(inode),
            "mtime": inode.mtime_ns,
            "links": inode.nlink,
            "size": None if inode.is_directory else inode.size,
        }
        if not inode.is_directory:
            about["same as"] = first.setdefault(inode.nid, path)
        if inode.is_file:
            digest = hashlib.sha256()
            for piece in image.pieces(inode):
                digest.update(piece)
            about["content"] = digest.hexdigest(), inode.size
        elif inode.is_symlink:
            about["target"] = image.readlink(inode)
        elif inode.mode & 0o170000 in (0o020000, 0o060000):
            about["device"] = os.makedev(*inode.device)
        if inode.is_whiteout:
            about["mtime"] = None
        found[path] = about
    return found


def forget_times(found: dict[bytes, Any], *paths: bytes) -> dict[bytes, Any]:
    """Without the times of directories that no entry describes."""
    for path in paths:
        found[path]["mtime"] = None
    return found
