"""Where it is measured: an ext4 with a journal, in a file on a loop device.

What a machine's own root file system does (no journal, a long-used tree, many deletions before)
would be measured else: there one and the same ``tar -xf`` took from 1 to 13 seconds.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lamina.kernel.mount import unmount
from lamina.kernel.remove import remove_tree

SIZE = 12 << 30  # bytes; sparse


class Ground:
    """A directory on the file system under measurement, and ``run`` for locks, on a tmpfs."""

    def __init__(self, path: Path, run: Path) -> None:
        self.path = path
        self.run = run
        self._serial = itertools.count()

    def fresh(self, name: str) -> Path:
        """A path that is not there yet."""
        return self.path / f"{name}-{next(self._serial)}"

    def clear(self) -> None:
        """Remove everything."""
        for entry in (*self.path.iterdir(), *self.run.iterdir()):
            if entry.name not in ("lost+found", "bytecode"):
                remove_tree(entry)
        os.sync()


@contextmanager
def ext4() -> Iterator[Ground]:
    """Make it, mount it, and leave no trace of it."""
    with ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="lamina-bench-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, scratch)
        image = scratch / "ext4"
        with image.open("wb") as file:
            file.truncate(SIZE)
        options = ["-O", "has_journal", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
        tool("mkfs.ext4", "-q", "-F", *options, image)
        mounted = scratch / "mnt"
        mounted.mkdir()
        tool("mount", "-o", "loop", image, mounted)
        stack.callback(_leave, mounted)
        run = Path(tempfile.mkdtemp(prefix="lamina-bench-", dir="/run"))
        stack.callback(remove_tree, run)
        yield Ground(mounted, run)


def _leave(mounted: Path) -> None:
    """Unmount all that stands on it, and then the file system itself."""
    unmount_below(mounted)
    unmount(mounted)


def unmount_below(top: Path) -> None:
    """Unmount all that stands below a directory, topmost first."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split()[4] for line in table]
    for target in reversed([t for t in targets if t.startswith(f"{top}/")]):
        unmount(target, lazy=True)


def tool(*argv: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a program that must succeed, its output shown only if it doesn't."""
    done = subprocess.run(argv, capture_output=True, check=False, env=env)
    if done.returncode:
        sys.stderr.buffer.write(done.stderr + done.stdout)
        raise SystemExit(f"{argv[0]} failed with {done.returncode}")


def output(*argv: str | Path) -> str:
    """What a program prints."""
    return subprocess.run(argv, capture_output=True, check=True, text=True).stdout
