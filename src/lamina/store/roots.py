"""Where a store is, for this user on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from lamina.errors import PermissionRequired, StoreError

_SYSTEM_ROOT = Path("/var/lib/lamina")
_SYSTEM_RUN = Path("/run/lamina")


def default_root() -> Path:
    """``/var/lib/lamina`` for root, ``$XDG_DATA_HOME/lamina`` for others.

    Root of a user namespace that may not write ``/var/lib`` counts as a user.
    """
    if _is_system():
        return _SYSTEM_ROOT
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(data) / "lamina"


def default_run(root: Path) -> Path:
    """The run directory that goes with ``root``: the same for all who open it.

    ``/run/lamina`` for root, ``$XDG_RUNTIME_DIR/lamina`` for others; a root that is not the
    default one gets a directory of its own below.
    """
    run = _SYSTEM_RUN if _is_system() else _user_run()
    if root == default_root():
        return run
    import hashlib

    return run / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]


def prepare(root: Path, run: Path) -> None:
    """Make the directories, readable by their owner alone.

    Raises:
        PermissionRequired: they belong to another user.
        StoreError: the root is Docker's, or they can't be made for another reason (a read-only
            file system, a file in the way).
    """
    if is_docker_root(root):
        raise StoreError(
            f"{root} is a Docker root and no store of Lamina's: 'lamina adopt {root}' takes over "
            "what is in it; --root is for a directory of Lamina's own"
        )
    for path in (root, run):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except PermissionError as error:
            raise _forbidden(path) from error
        except OSError as error:
            raise StoreError(f"can't make the directory {path}: {error.strerror}") from error
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            if os.statvfs(path).f_flag & os.ST_RDONLY:
                raise StoreError(f"{path} is on a read-only file system")
            raise _forbidden(path)
    for name in ("staging", "tar-split"):
        (root / name).mkdir(mode=0o700, exist_ok=True)


def is_docker_root(path: Path) -> bool:
    """Whether Docker keeps images or containers there, of whichever storage driver.

    A store in the same directory would take Docker's layers for leftovers of its own.
    """
    return _has(path / "image", "layerdb") or _has(path / "containers", "config.v2.json")


def _has(directory: Path, name: str) -> bool:
    """Whether an entry of a directory has an entry of this name."""
    try:
        with os.scandir(directory) as entries:
            return any(os.path.lexists(f"{entry.path}/{name}") for entry in entries)
    except OSError:
        return False


def _forbidden(path: Path) -> PermissionRequired:
    return PermissionRequired(
        f"no permission to write {path}: use sudo, or a store of your own with --root DIR"
    )


def _is_system() -> bool:
    if os.geteuid() != 0:
        return False
    nearest = next(p for p in (_SYSTEM_ROOT, *_SYSTEM_ROOT.parents) if p.exists())
    return os.access(nearest, os.W_OK)


def _user_run() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "lamina"
    path = Path(f"/tmp/lamina-{os.geteuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    if path.lstat().st_uid != os.geteuid() or path.is_symlink():
        raise StoreError(f"{path} belongs to another user: set XDG_RUNTIME_DIR")
    return path
