"""Indexes to test with: built from an archive, mounted, and compared with the archive unpacked."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.archive.erofs import Built, Image, Layers, build_index, merge_indexes, open_image
from lamina.archive.unpack import unpack
from lamina.archive.whiteout import OVERLAY
from lamina.kernel import xattr
from lamina.kernel.erofs import mount_erofs
from lamina.kernel.mount import mount_new, unmount

_START_NS = time.time_ns() - 10**9
_DAY_NS = 86_400 * 10**9

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
        for attempt in range(100):  # whatever watches block devices may have a loop device open
            try:
                unmount(place)
                break
            except OSError as error:
                if error.errno != errno.EBUSY or attempt == 99:
                    raise
                time.sleep(0.02)


def unpacked(root: Path, archive: bytes | Path, lowers: Sequence[Path] | None = None) -> Path:
    """The same archive unpacked."""
    root.mkdir()
    stream = io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")
    with stream:
        unpack(stream, root, fmt=OVERLAY, lowers=lowers)
    return root


def facts(root: Path) -> dict[bytes, Any]:
    """Everything that can be seen of a tree, but for times that nobody set."""
    top = os.fsencode(root)
    found: dict[bytes, Any] = {}
    inodes: dict[bytes, tuple[int, int]] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        full = top + b"/" + path
        status = os.lstat(full)
        kind = stat.S_IFMT(status.st_mode)
        about = _about(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        about["xattrs"] = xattr.list_all(full.rstrip(b"/"))
        about["links"] = status.st_nlink
        if kind == stat.S_IFDIR:
            pending += [path + b"/" + name if path else name for name in os.listdir(full)]
        else:
            about["size"] = status.st_size
            inodes[path] = status.st_dev, status.st_ino
        if kind == stat.S_IFREG:
            with open(full, "rb") as file:
                about["content"] = hashlib.file_digest(file, "sha256").hexdigest()
        elif kind == stat.S_IFLNK:
            about["target"] = os.readlink(full)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            about["device"] = os.major(status.st_rdev), os.minor(status.st_rdev)
        found[path] = about
    _say_which_are_one(found, inodes)
    return found


def _about(mode: int, uid: int, gid: int, mtime_ns: int) -> dict[str, Any]:
    unset = not mtime_ns or _START_NS <= mtime_ns < _START_NS + _DAY_NS
    return {"mode": oct(mode), "owner": (uid, gid), "mtime": None if unset else mtime_ns}


def _say_which_are_one(found: dict[bytes, Any], inodes: Mapping[bytes, Any]) -> None:
    first: dict[Any, bytes] = {}
    for path in sorted(inodes):
        found[path]["same as"] = first.setdefault(inodes[path], path)


def of_image(image: Image) -> dict[bytes, Any]:
    """The same facts by our own reader."""
    found: dict[bytes, Any] = {}
    inodes: dict[bytes, int] = {}
    for path, inode in image.walk():
        about = _about(inode.mode, inode.uid, inode.gid, inode.mtime_ns)
        about["xattrs"] = image.xattrs(inode)
        about["links"] = inode.nlink
        if not inode.is_directory:
            about["size"] = inode.size
            inodes[path] = inode.nid
        if inode.is_file:
            digest = hashlib.sha256()
            for piece in image.pieces(inode):
                digest.update(piece)
            about["content"] = digest.hexdigest()
        elif inode.is_symlink:
            about["target"] = image.readlink(inode)
        elif inode.mode & 0o170000 in (stat.S_IFCHR, stat.S_IFBLK):
            about["device"] = inode.device
        found[path] = about
    _say_which_are_one(found, inodes)
    return found


def without(found: dict[bytes, Any], *keys: str) -> dict[bytes, Any]:
    """The facts but for some."""
    return {p: {k: v for k, v in about.items() if k not in keys} for p, about in found.items()}


def merge(place: Path, bottom_up: Sequence[Index]) -> Index:
    """The merged index of some layers."""
    place.mkdir(exist_ok=True)
    path = place / "index"
    with ExitStack() as stack:
        images = [stack.enter_context(layer.open()) for layer in bottom_up]
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        stack.callback(os.close, fd)
        merge_indexes(images, fd, identity=IDENTITY)
    return Index(path, tuple(device for layer in bottom_up for device in layer.devices))
