"""Making trees, saying what they look like, and packing small tars for the suite."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


def facts(root: Path, *, times: bool = True) -> dict[str, Facts]:
    """Each name below ``root`` with all that a layer has to keep about it."""
    found: dict[str, Facts] = {}
    first_name: dict[tuple[int, int], str] = {}
    for directory, names, files in os.walk(root):
        for name in sorted(names + files):
            path = Path(directory, name)
            relative = str(path.relative_to(root))
            found[relative] = _facts(path, relative, first_name, times=times)
    return found


def _facts(
    path: Path, relative: str, first_name: dict[tuple[int, int], str], *, times: bool
) -> Facts:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    fact: Facts = {
        "kind": kind,
        "mode": stat.S_IMODE(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
            if not name.startswith(("trusted.overlay.", "user.overlay."))
        },
    }
    if times and kind != stat.S_IFDIR:
        fact["mtime"] = status.st_mtime_ns
    if kind == stat.S_IFREG:
        fact["content"] = path.read_bytes()
        fact["same as"] = first_name.setdefault((status.st_dev, status.st_ino), relative)
    elif kind == stat.S_IFLNK:
        fact["target"] = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        fact["device"] = status.st_rdev
    return fact


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    """A tar member; ``fields`` are attributes of :class:`tarfile.TarInfo`."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar(*members: str | tarfile.TarInfo | tuple[str, bytes]) -> io.BytesIO:
    """A tar of members: ``"dir/"``, ``("file", b"content")``, ``"empty"`` or a TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            elif isinstance(member, tuple):
                name, content = member
                archive.addfile(entry(name, size=len(content)), io.BytesIO(content))
            elif member.endswith("/"):
                archive.addfile(entry(member, tarfile.DIRTYPE))
            else:
                archive.addfile(entry(member))
    out.seek(0)
    return out


def names_in(stream: Any) -> list[str]:
    """The member names of a tar stream, in order."""
    with tarfile.open(fileobj=io.BytesIO(stream.read())) as archive:
        return archive.getnames()
