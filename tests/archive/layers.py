"""Layers to test with: made from a few lines, mounted, changed at random, and described."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from lamina.archive.whiteout import Format
from lamina.kernel.mount import mount_new, unmount
from lamina.kernel.xattr import list_all

Operation: TypeAlias = Callable[[Path, random.Random, Path], None]

NAMES = ("a", "b", "c", "d")


def make(layer: Path, fmt: Format, *lines: str) -> Path:
    """A layer from lines: ``dir/``, ``file``, ``-whiteout`` and ``dir/!`` for an opaque one."""
    layer.mkdir()
    for line in lines:
        path = layer / line.lstrip("-").rstrip("!")
        path.parent.mkdir(parents=True, exist_ok=True)
        if line.endswith(("/", "!")):
            path.mkdir(exist_ok=True)
        elif not line.startswith("-"):
            path.write_text(line)
        fd = os.open(path if line.endswith("!") else path.parent, os.O_RDONLY)
        if line.startswith("-"):
            fmt.write_whiteout(fd, os.fsencode(path.name))
        elif line.endswith("!"):
            fmt.set_opaque(fd)
        os.close(fd)
    return layer


def chain(top: Path, depth: int, *, sibling: bool = False) -> None:
    """A tree of ``depth`` nested directories, each with a file beside the next or not."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(b"dd", dir_fd=fd)
        if sibling:
            os.close(os.open(b"z", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open(b"dd", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


@contextmanager
def overlay(
    target: Path, lowers: Sequence[Path], upper: Path | None = None, *, user: bool = False
) -> Iterator[Path]:
    """The kernel's overlay of some layers, topmost first; read-only without an upper."""
    options: list[tuple[str, str | int | None]] = [("lowerdir+", str(p)) for p in lowers]
    if upper is None and len(lowers) == 1:
        empty = target.with_name(target.name + ".empty")
        empty.mkdir(exist_ok=True)
        options.append(("lowerdir+", str(empty)))
    if upper is not None:
        work = target.with_name(target.name + ".work")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        upper.mkdir(exist_ok=True)
        options += [("upperdir", str(upper)), ("workdir", str(work)), ("index", "off")]
    if user:
        options.append(("userxattr", None))
    target.mkdir(exist_ok=True)
    mount_new("overlay", target, options)
    try:
        yield target
    finally:
        unmount(target)


@contextmanager
def in_memory(target: Path) -> Iterator[Path]:
    """A tmpfs: thousands of directories are made in no time."""
    target.mkdir()
    mount_new("tmpfs", target, [("size", "1g")])
    try:
        yield target
    finally:
        unmount(target)


def disturb(root: Path, rng: random.Random, count: int, *without: Operation) -> None:
    """Some random operations in a mounted tree, as a program in a container does them."""
    operations = [operation for operation in _OPERATIONS if operation not in without]
    for _ in range(count):
        directories = [Path(top) for top, _, _ in os.walk(root)]
        path = rng.choice(directories) / rng.choice(NAMES)
        try:
            rng.choice(operations)(path, rng, rng.choice(directories) / rng.choice(NAMES))
        except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
        except OSError as error:
            if error.errno not in (1, 18, 22, 39, 40):  # EPERM, EXDEV, EINVAL, ENOTEMPTY, ELOOP
                raise


def write(path: Path, rng: random.Random, _: Path) -> None:
    if path.is_fifo():
        return  # opening it would wait for a reader
    path.write_bytes(rng.randbytes(rng.randrange(40)))


def append(path: Path, rng: random.Random, _: Path) -> None:
    if path.is_file():
        with path.open("ab") as file:
            file.write(b"more")


def mkdir(path: Path, rng: random.Random, _: Path) -> None:
    path.mkdir()
    if rng.random() < 0.7:
        (path / rng.choice(NAMES)).write_text("new")


def remove(path: Path, rng: random.Random, _: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def replace(path: Path, rng: random.Random, other: Path) -> None:
    remove(path, rng, other)
    rng.choice([write, mkdir, symlink, fifo])(path, rng, other)


def symlink(path: Path, rng: random.Random, other: Path) -> None:
    path.symlink_to(rng.choice(NAMES))


def fifo(path: Path, rng: random.Random, _: Path) -> None:
    os.mkfifo(path)


def chmod(path: Path, rng: random.Random, _: Path) -> None:
    if not path.is_symlink():
        path.chmod(rng.choice([0o700, 0o755, 0o640, 0o4755]))


def chown(path: Path, rng: random.Random, _: Path) -> None:
    os.lchown(path, rng.choice([0, 1000]), rng.choice([0, 50]))


def touch(path: Path, rng: random.Random, _: Path) -> None:
    os.utime(path, ns=(0, rng.choice([10**18, 10**18 + 7 * 10**9 + 3])), follow_symlinks=False)


def note(path: Path, rng: random.Random, _: Path) -> None:
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    os.setxattr(path, "user.note", rng.choice([b"1", b"2"]))


def touch_up(path: Path, rng: random.Random, _: Path) -> None:
    """Copied up by overlayfs, with nothing changed."""
    if path.is_file():
        os.close(os.open(path, os.O_RDWR))


def rename(path: Path, rng: random.Random, other: Path) -> None:
    path.rename(other)


def link(path: Path, rng: random.Random, other: Path) -> None:
    os.link(path, other, follow_symlinks=False)


_OPERATIONS = [
    write, append, mkdir, remove, remove, replace, symlink, chmod, chown, touch, note,
    touch_up, rename, link,
]  # fmt: skip


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    """What metadata say of a tree, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for top, directories, files in os.walk(root):
        for name in [".", *directories, *files] if top == str(root) else [*directories, *files]:
            path = os.path.join(top, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = status.st_size
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            directory = stat.S_ISDIR(status.st_mode)
            found["/" + os.path.relpath(path, root)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_rdev, content,
                None if directory else status.st_mtime_ns, list_all(path),
            )  # fmt: skip
    return found


def difference(new: Path, old: Path) -> list[str]:
    """What differs, as the changes module should say it, from two full descriptions."""
    after, before = describe(new), describe(old)
    lines: dict[str, str] = {}
    for path, what in after.items():
        if path not in before:
            lines[path] = "A"
        elif before[path] != what:
            lines[path] = "C"
    for path in before:
        above = os.path.dirname(path)
        if path not in after and (above == "/" or _is_directory(after, above)):
            lines[path] = "D"
    for path in list(lines):
        while (path := os.path.dirname(path)) != "/":
            lines.setdefault(path, "C")
    lines.pop("/.", None)
    return [f"{lines[path]} {path}" for path in sorted(lines, key=os.fsencode)]


def _is_directory(tree: dict[str, tuple[object, ...]], path: str) -> bool:
    mode = tree[path][0] if path in tree else 0
    return isinstance(mode, int) and stat.S_ISDIR(mode)
