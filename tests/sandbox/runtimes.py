"""runc and crun as people call them, on a bundle."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.support import need
from tests.users import User

NAMES = ("crun", "runc")

_MIXED_CGROUPS = Path("/sys/fs/cgroup/unified/cgroup.controllers")
_WITHOUT = 'umount -l /sys/fs/cgroup/unified && exec "$@"'


def start(name: str, bundle: Path, state: Path) -> subprocess.CompletedProcess[str]:
    """``crun run`` or ``runc run`` of a bundle, to its end; ``state`` is for its own files."""
    return _start(_command(name, bundle, state))


def start_as(user: User, name: str, bundle: Path) -> subprocess.CompletedProcess[str]:
    """The same by an ordinary user."""
    ids = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    command = _command(name, bundle, user.home / "state", *ids)
    return _start(command, env=user.environment(), cwd=user.home)


def _command(name: str, bundle: Path, state: Path, *before: str) -> list[str]:
    """On a machine with cgroups of both versions at once crun refuses to work: it gets a mount
    namespace in which there is one version.
    """
    need(name)
    words = ["--root", str(state), "run", "--bundle", str(bundle), f"test-{name}"]
    if name == "crun" and _MIXED_CGROUPS.exists():
        enter = ["unshare", "--mount", "sh", "-c", _WITHOUT, "sh"]
        return [*enter, *before, name, "--cgroup-manager=disabled", *words]
    return [*before, name, *words]


def _start(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
